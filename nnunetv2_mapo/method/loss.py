"""Preference loss on logit margins, next to nnU-Net's own loss.

Δ is by how much more the policy prefers chosen to rejected than the reference does:
(log π_θ(ŷ₊|x) - log π_θ(ŷ₋|x)) - (log π_ref(ŷ₊|x) - log π_ref(ŷ₋|x)). In DPO only such differences
enter, and log p_a - log p_b = z_a - z_b for two classes a, b of one voxel: the normalisation
cancels. So only the logits z of the *disagreement voxels*, in which chosen and rejected differ, are
ever touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels

# A patch that only grazes the disagreement must not get an organ's weight.
LEAST_DISAGREEMENT_SHARE = 0.001
# What a step logs, under names that users of DPO know.
STEP_KEYS = (
    "loss/supervised",
    "loss/dpo",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)


@dataclass(frozen=True)
class Disagreement:
    """Where and how chosen and rejected differ in each patch of a batch.

    The n of each shape is the largest number of disagreement voxels of any patch; patches with less
    of them are padded.
    """

    voxels: Tensor  # flat index of each disagreement voxel in its patch, `(B, n)`, int64
    heads: Tensor  # +1: on in chosen only, -1: in rejected only; 0 in padding; `(B, C, n)`, int8
    weights: Tensor  # w of each disagreement voxel, in [0, 1] unless each part weighs alike (see
    # `region_pairs.even_out`); 0 in padding; `(B, n)`, float32
    num_voxels: Tensor  # N that the log-likelihood is averaged over, `(B,)`, float32
    num_disagreeing: Tensor  # number of disagreement voxels, `(B,)`, int64
    num_image_voxels: int  # |Ω|, of a patch

    @property
    def has_pair(self) -> Tensor:
        """Which patches have a disagreement voxel, shape `(B,)`."""
        return self.num_disagreeing > 0

    def gather(self, logits: Tensor) -> Tensor:
        """Logits at the disagreement voxels: from `(B, C, *spatial)` to `(B, C, n)`, float32."""
        index = self.voxels.unsqueeze(1).expand(-1, logits.shape[1], -1)
        return logits.flatten(2).gather(2, index).float()

    def of(self, samples: Tensor) -> Disagreement:
        """The same of some samples of the batch, by mask, shape `(B,)`."""
        return self._each(lambda tensor: tensor[samples])

    def to(self, device: torch.device) -> Disagreement:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Disagreement:
        parts: Any = {n: function(v) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **parts)


def find_disagreement(
    chosen: Tensor, rejected: Tensor, labels: Labels, likelihood: str, weights: Tensor | None = None
) -> Disagreement:
    """Find the disagreement voxels of each patch; n = 0 where no patch has any.

    Args:
        chosen: Label maps, shape `(B, *spatial)`.
        rejected: The same.
        labels: Meaning of the label maps.
        likelihood: `"image"`: N is the number of voxels (eq. 6); else the sum of the weights of the
            disagreement voxels, at least `LEAST_DISAGREEMENT_SHARE` of all voxels.
        weights: Weight of each voxel, shape `(B, *spatial)`; None: 1 everywhere.
    """
    chosen, rejected = chosen.flatten(1), rejected.flatten(1)
    differs = chosen != rejected
    num_disagreeing = differs.sum(1)
    sample, voxel = differs.nonzero(as_tuple=True)
    # nonzero() sorts by sample: the place in its sample is the place minus the sample's start
    starts = num_disagreeing.cumsum(0) - num_disagreeing
    place = torch.arange(len(voxel), device=voxel.device) - starts[sample]
    voxels = voxel.new_zeros(len(chosen), int(num_disagreeing.max()))
    voxels[sample, place] = voxel

    # the padding points to voxel 0, which may be a disagreement voxel itself
    is_real = torch.arange(voxels.shape[1], device=voxel.device) < num_disagreeing[:, None]
    heads = labels.head_difference(chosen.gather(1, voxels), rejected.gather(1, voxels))
    used = is_real.float()
    if weights is not None:
        used = used * weights.flatten(1).gather(1, voxels)
    num_image_voxels = chosen.shape[1]
    if likelihood == "image":
        num_voxels = torch.full_like(num_disagreeing, num_image_voxels).float()
    else:
        num_voxels = used.sum(1).clamp(min=LEAST_DISAGREEMENT_SHARE * num_image_voxels)
    return Disagreement(
        voxels, heads * is_real.unsqueeze(1), used, num_voxels, num_disagreeing, num_image_voxels
    )


def voxel_margins(logits: Tensor, disagreement: Disagreement) -> Tensor:
    """Log-likelihood of chosen minus that of rejected at each disagreement voxel.

    Their `average` is log π(ŷ₊|x) - log π(ŷ₋|x) (eq. 6). From logits at these voxels, see
    `Disagreement.gather`, `(B, C, n)`, to `(B, n)`, float32; 0 in the padding.
    """
    return (disagreement.heads * logits).sum(1)


def average(values: Tensor, disagreement: Disagreement) -> Tensor:
    """Weighted sum over the disagreement voxels divided by N: from `(B, n)` to `(B,)`."""
    return (disagreement.weights * values).sum(1) / disagreement.num_voxels


def preference_loss(
    delta: Tensor, *, beta: float, loss_type: str = "sigmoid", label_smoothing: float = 0.0
) -> Tensor:
    """Loss of each Δ by the names of TRL's DPO trainer, where ℓ(x) = -log σ(x).

    - `"sigmoid"`: ℓ(β Δ), DPO (eq. 2; arXiv:2305.18290, eq. 7); with label smoothing ε conservative
      DPO, (1 - ε) ℓ(β Δ) + ε ℓ(-β Δ) (Mitchell, 2023). ln 2 where policy and reference agree.
    - `"robust"`: ((1 - ε) ℓ(β Δ) - ε ℓ(-β Δ)) / (1 - 2 ε), unbiased under pairs that are the wrong
      way round with probability ε (arXiv:2403.00409). ln 2 where they agree; may be negative.
    - `"ipo"`: (Δ - 1 / (2 β))² (arXiv:2310.12036, eq. 17, where β is τ): Δ has a finite aim.
    - `"hinge"`: max(0, 1 - β Δ) (SLiC, arXiv:2305.10425, on DPO's rewards as TRL does it).

    Δ may be of pairs or voxels, of any shape; β > 0 is the sensitivity to preference differences; ε
    is in [0, 0.5), above 0 for `"robust"`.
    """
    if loss_type == "ipo":
        return (delta - 1 / (2 * beta)).square()
    if loss_type == "hinge":
        return (1 - beta * delta).relu()
    loss = softplus(-beta * delta)  # -log σ(x) = softplus(-x)
    if not label_smoothing:
        return loss
    right, wrong = (1 - label_smoothing) * loss, label_smoothing * softplus(beta * delta)
    if loss_type == "robust":
        return (right - wrong) / (1 - 2 * label_smoothing)
    return right + wrong


def voxel_loss(losses: Tensor, disagreement: Disagreement, *, beta: float, kappa: float) -> Tensor:
    """Loss of a pair of which each voxel saturates on its own: 2 κ / (β |Ω|) Σ_{i ∈ D} w_i ℓ(δ_i).

    From ℓ(δ) of each disagreement voxel, `(B, n)`, to `(B,)`; δ is the policy's margin minus the
    reference's. With DPO's ℓ(δ) = -log σ(β δ) a voxel of weight 1 pulls with κ / |Ω| where policy
    and reference agree; cross-entropy pulls with at most 1 / |Ω|.
    """
    scale = 2 * kappa / (beta * disagreement.num_image_voxels)
    return scale * (disagreement.weights * losses).sum(1)


def chosen_log_likelihood(margins: Tensor) -> Tensor:
    """Log-likelihood of the chosen label of each voxel, given that it is chosen's or rejected's.

    log p_a / (p_a + p_b) = log σ(m) of margins m of any shape; with two classes it is log p_a. That
    of rejected is log σ(-m), and the difference of the two is m. For the log only.
    """
    return logsigmoid(margins)


@dataclass(frozen=True)
class Pairs:
    """The preference pairs of a batch, and what the reference says of them."""

    disagreement: Disagreement
    reference_margins: Tensor  # of each disagreement voxel in logits, `(B, n)`; 0: no reference


MoreLoss: TypeAlias = Callable[[nn.Module], Tensor]  # of other images, by the base loss


class MAPOLoss:
    """Makes λ · base loss + preference loss (eq. 7) of what a base loss returns, by a forward hook.

    So the base stays what its trainer reads, sets and calls, also with further arguments. The first
    argument is the network's output. Of the settings `beta`, `lambda_supervised`, `loss_type`,
    `label_smoothing`, `likelihood` and `kappa` count.
    """

    def __init__(self, config: MAPOConfig) -> None:
        self.config = config
        self.num_calls = 0  # of the base, for the latest batch
        self.supervised = torch.tensor(math.nan)  # latest base loss, without λ
        self._pairs: Pairs | None = None
        self._more: MoreLoss | None = None
        self._pair_values: Tensor | None = None  # see `_describe_pairs`

    def attach(self, base: Any) -> nn.Module:
        """Hook a base loss, once, and return it; a plain function becomes a module."""
        loss = base if isinstance(base, nn.Module) else _Function(base)
        if self._add not in loss._forward_hooks.values():
            loss.register_forward_hook(self._add, with_kwargs=True)
        return loss

    @contextmanager
    def of(self, pairs: Pairs | None, more: MoreLoss | None = None) -> Iterator[None]:
        """Let the base loss inside a `with` block be that of a batch with these pairs.

        `more` is the loss of other images, which is asked for once, with the base loss, and added.
        """
        self._pairs, self._more, self.num_calls, self._pair_values = pairs, more, 0, None
        try:
            yield
        finally:
            self._pairs = self._more = None

    def step_values(self) -> dict[str, float]:
        """Values of the latest loss under `STEP_KEYS`.

        The rewards β (log π_θ - log π_ref) are means over the patches with a pair, of which only
        disagreement voxels enter, see `chosen_log_likelihood`: the others contribute the same to
        chosen and rejected. All but the first value are NaN where no patch of the batch has a
        disagreement voxel.
        """
        # Read only here, after the step: reading waits for the device.
        values = [math.nan] * 5 if self._pair_values is None else self._pair_values.tolist()
        return dict(zip(STEP_KEYS, (float(self.supervised), *values), strict=True))

    def _add(
        self, base: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], loss: Any
    ) -> Any:
        """Total loss of a batch, a scalar like the base loss."""
        self.num_calls += 1
        if not isinstance(loss, Tensor):
            if self._pairs is None and self._more is None:
                return loss
            message = f"the loss returns {type(loss).__name__}: a tensor, a scalar, is needed"
            raise TypeError(message)
        supervised = loss.detach()
        if self._pairs is not None:
            output = arguments[0] if arguments else next(iter(keywords.values()))
            loss = self.config.lambda_supervised * loss + self.preference_loss(output, self._pairs)
        elif self._more is not None:
            more, self._more = self._more, None  # it may call the base loss itself
            loss = self.config.lambda_supervised * loss + more(base)
        self.supervised = supervised
        return _spread_nan(loss)

    def preference_loss(self, output: Any, known: Pairs) -> Tensor:
        """Loss of the pairs, summed over the patches with one, divided by the batch size.

        The other patches have a constant loss and a gradient of exactly 0; the constant is left
        out, so that the training loss stays comparable.
        """
        with torch.autocast(known.reference_margins.device.type, enabled=False):
            return self._preference_loss(output, known)

    def _preference_loss(self, output: Any, known: Pairs) -> Tensor:
        pairs = known.disagreement
        logits = output[0] if isinstance(output, (list, tuple)) else output
        expected = (*pairs.heads.shape[:2], pairs.num_image_voxels)
        if logits.flatten(2).shape != expected:
            message = (
                f"the loss is called with an output of shape {tuple(logits.shape)}, where the "
                f"batch has {expected[0]} patches of {expected[2]} voxels and {expected[1]} heads"
            )
            raise ValueError(message)
        margins = voxel_margins(pairs.gather(logits), pairs)
        deltas = margins - known.reference_margins
        config, is_voxelwise = self.config, self.config.likelihood == "voxel"
        losses = preference_loss(
            deltas if is_voxelwise else average(deltas, pairs),
            beta=config.beta, loss_type=config.loss_type, label_smoothing=config.label_smoothing,
        )  # fmt: skip
        if is_voxelwise:
            losses = voxel_loss(losses, pairs, beta=config.beta, kappa=config.kappa)
        self._pair_values = self._describe_pairs(margins.detach(), losses.detach(), known)
        return (losses * pairs.has_pair).mean()

    def _describe_pairs(self, margins: Tensor, losses: Tensor, known: Pairs) -> Tensor:
        """Mean over the patches with a pair of what `step_values` says of them, shape `(5,)`."""
        pairs, reference = known.disagreement, known.reference_margins
        chosen = chosen_log_likelihood(margins) - chosen_log_likelihood(reference)
        delta = average(margins - reference, pairs)
        chosen = average(chosen, pairs)
        rewards = self.config.beta * torch.stack([chosen, chosen - delta, delta])
        values = torch.cat([losses[None], rewards, (delta > 0).float()[None]])
        return (values * pairs.has_pair).sum(1) / pairs.has_pair.sum()


class _Function(nn.Module):
    """A base loss that is a plain function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function


def _spread_nan(loss: Tensor) -> Tensor:
    """The loss itself if it is finite; else NaN, and so is every gradient.

    So the gradient alone tells whether a step can be taken, and with several ranks it tells all.
    """
    return loss * (1 + 0 * loss.detach())
