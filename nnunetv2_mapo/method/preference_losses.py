"""Losses of a preference pair under the names of TRL's DPO trainer, as pure functions.

Δ is by how much more the policy prefers chosen to rejected than the reference does, in logits:
(log π_θ(ŷ₊|x) - log π_θ(ŷ₋|x)) - (log π_ref(ŷ₊|x) - log π_ref(ŷ₋|x)). All are elementwise.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def sigmoid_loss(delta: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO, -log σ(β Δ) (eq. 2; Rafailov et al., arXiv:2305.18290, eq. 7).

    With label smoothing ε it is conservative DPO, -(1 - ε) log σ(β Δ) - ε log σ(-β Δ) (Mitchell,
    2023): a pair is held to be the wrong way round with probability ε.

    Args:
        delta: Δ of each pair.
        beta: Sensitivity to preference differences β, > 0.
        label_smoothing: ε, in [0, 0.5).

    Returns:
        Loss of each pair; ln 2 where policy and reference agree.
    """
    # -log σ(x) = softplus(-x)
    loss = softplus(-beta * delta)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * softplus(beta * delta)
    return loss


def robust_loss(delta: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Unbiased under pairs that are the wrong way round with probability ε (arXiv:2403.00409).

    ((1 - ε) ℓ(β Δ) - ε ℓ(-β Δ)) / (1 - 2 ε) with ℓ(x) = -log σ(x).

    Args:
        delta: Δ of each pair.
        beta: β, > 0.
        label_smoothing: ε, in (0, 0.5).

    Returns:
        Loss of each pair; ln 2 where policy and reference agree; may be negative.
    """
    right, wrong = softplus(-beta * delta), softplus(beta * delta)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def ipo_loss(delta: Tensor, beta: float) -> Tensor:
    """IPO, (Δ - 1 / (2 β))² (Azar et al., arXiv:2310.12036, eq. 17): Δ has a finite aim.

    Args:
        delta: Δ of each pair.
        beta: β, the paper's τ, > 0.

    Returns:
        Loss of each pair; 1 / (4 β²) where policy and reference agree.
    """
    return (delta - 1 / (2 * beta)).square()


def hinge_loss(delta: Tensor, beta: float) -> Tensor:
    """Hinge loss, max(0, 1 - β Δ) (SLiC, arXiv:2305.10425, on DPO's rewards as TRL does it).

    Args:
        delta: Δ of each pair.
        beta: β, the inverse of the margin that is aimed at, > 0.

    Returns:
        Loss of each pair; 1 where policy and reference agree.
    """
    return (1 - beta * delta).relu()


def preference_loss(
    delta: Tensor, *, loss_type: str, beta: float, label_smoothing: float
) -> Tensor:
    """Loss of each pair of the type that the settings name, see there."""
    if loss_type == "ipo":
        return ipo_loss(delta, beta)
    if loss_type == "hinge":
        return hinge_loss(delta, beta)
    if loss_type == "robust":
        return robust_loss(delta, beta, label_smoothing)
    return sigmoid_loss(delta, beta, label_smoothing)
