"""Preference loss on logit margins, next to nnU-Net's own loss.

In DPO only differences of log-likelihoods enter, and log p_a - log p_b = z_a - z_b for two classes
a, b of one voxel: the normalisation cancels. So only the logits z of the *disagreement voxels*, in
which chosen and rejected differ, are ever touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.preference_losses import preference_loss

# A patch that only grazes the disagreement must not get an organ's weight.
LEAST_DISAGREEMENT_SHARE = 0.001


@dataclass(frozen=True)
class Disagreement:
    """Where and how chosen and rejected differ in each patch of a batch.

    Attributes:
        voxels: Flat index of each disagreement voxel in its patch, padded to the batch's largest
            number n, shape `(B, n)`, int64.
        heads: +1 for a head that is on in chosen only, -1 in rejected only; 0 in the padding;
            shape `(B, C, n)`, int8.
        weights: Weight w of each disagreement voxel, in [0, 1], 0 in the padding; shape `(B, n)`,
            float32.
        num_voxels: Number N that the log-likelihood is averaged over, shape `(B,)`, float32.
        num_disagreeing: Number of disagreement voxels, shape `(B,)`, int64.
        num_image_voxels: Voxels |Ω| of a patch.
    """

    voxels: Tensor
    heads: Tensor
    weights: Tensor
    num_voxels: Tensor
    num_disagreeing: Tensor
    num_image_voxels: int

    @property
    def has_pair(self) -> Tensor:
        """Which patches have a disagreement voxel, shape `(B,)`."""
        return self.num_disagreeing > 0

    def gather(self, logits: Tensor) -> Tensor:
        """Logits at the disagreement voxels in float32.

        Args:
            logits: Shape `(B, C, *spatial)`.

        Returns:
            Shape `(B, C, n)`.
        """
        index = self.voxels.unsqueeze(1).expand(-1, logits.shape[1], -1)
        return logits.flatten(2).gather(2, index).float()

    def of(self, samples: Tensor) -> Disagreement:
        """The same of some samples of the batch, by mask, shape `(B,)`."""
        return Disagreement(
            self.voxels[samples],
            self.heads[samples],
            self.weights[samples],
            self.num_voxels[samples],
            self.num_disagreeing[samples],
            self.num_image_voxels,
        )


def find_disagreement(
    chosen: Tensor,
    rejected: Tensor,
    labels: Labels,
    likelihood: str,
    weights: Tensor | None = None,
) -> Disagreement:
    """Find the disagreement voxels of each patch.

    Args:
        chosen: Label maps, shape `(B, *spatial)`.
        rejected: The same.
        labels: Meaning of the label maps.
        likelihood: `"image"`: N is the number of voxels (eq. 6); else the sum of the weights of the
            disagreement voxels, at least `LEAST_DISAGREEMENT_SHARE` of all voxels.
        weights: Weight of each voxel, shape `(B, *spatial)`; None: 1 everywhere.

    Returns:
        Disagreement of the batch; n = 0 where no patch has any.
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

    Args:
        logits: Logits at the disagreement voxels, see `Disagreement.gather`, shape `(B, C, n)`.
        disagreement: Of the same batch.

    Returns:
        Shape `(B, n)`, float32; 0 in the padding.
    """
    return (disagreement.heads * logits).sum(1)


def margin(logits: Tensor, disagreement: Disagreement) -> Tensor:
    """Mean log-likelihood of chosen minus that of rejected, log π(ŷ₊|x) - log π(ŷ₋|x) (eq. 6).

    Args:
        logits: Logits at the disagreement voxels, see `Disagreement.gather`, shape `(B, C, n)`.
        disagreement: Of the same batch.

    Returns:
        Shape `(B,)`, float32.
    """
    return average(voxel_margins(logits, disagreement), disagreement)


def average(values: Tensor, disagreement: Disagreement) -> Tensor:
    """Weighted sum over the disagreement voxels divided by N.

    Args:
        values: One of each disagreement voxel, shape `(B, n)`.
        disagreement: Of the same batch.

    Returns:
        Shape `(B,)`.
    """
    return (disagreement.weights * values).sum(1) / disagreement.num_voxels


def voxel_loss(losses: Tensor, disagreement: Disagreement, *, beta: float, kappa: float) -> Tensor:
    """Loss of a pair of which each voxel saturates on its own: 2 κ / (β |Ω|) Σ_{i ∈ D} w_i ℓ(δ_i).

    With DPO's ℓ(δ) = -log σ(β δ) a voxel of weight 1 pulls with κ / |Ω| where policy and reference
    agree; cross-entropy pulls with at most 1 / |Ω|.

    Args:
        losses: ℓ(δ) of each disagreement voxel, shape `(B, n)`; δ is the policy's margin minus the
            reference's.
        disagreement: Of the same batch.
        beta: β, > 0.
        kappa: κ, > 0.

    Returns:
        Shape `(B,)`.
    """
    scale = 2 * kappa / (beta * disagreement.num_image_voxels)
    return scale * (disagreement.weights * losses).sum(1)


def chosen_log_likelihood(logits: Tensor, disagreement: Disagreement, labels: Labels) -> Tensor:
    """Mean log-likelihood of the chosen labels over the disagreement voxels, for the log only.

    Args:
        logits: Logits at the disagreement voxels, shape `(B, C, n)`.
        disagreement: Of the same batch.
        labels: Meaning of the heads.

    Returns:
        Sum over the disagreement voxels divided by N, shape `(B,)`, float32.
    """
    heads = disagreement.heads
    if labels.regions is None:
        log_probabilities = logits.log_softmax(1) * (heads > 0)
    else:
        log_probabilities = functional.logsigmoid(heads * logits) * (heads != 0)
    return average(log_probabilities.sum(1), disagreement)


class Rewards(NamedTuple):
    """Implicit rewards β (log π_θ - log π_ref) of one step, a mean over the patches with a pair.

    NaN where no patch of the batch has a disagreement voxel. Only disagreement voxels enter: the
    others contribute the same to chosen and rejected.

    Attributes:
        loss: Preference loss.
        chosen: Reward of the chosen labels.
        rejected: Reward of the rejected labels.
        margins: Their difference, β Δ.
        accuracies: Share of the patches in which chosen has the higher reward.
    """

    loss: float
    chosen: float
    rejected: float
    margins: float
    accuracies: float


@dataclass(frozen=True)
class PreferenceTarget:
    """What `MAPOLoss` needs besides the output: nnU-Net's target, and the preferences.

    nnU-Net moves a batch's target with `to`.

    Attributes:
        target: nnU-Net's own target: a tensor, or a list with deep supervision.
        disagreement: Where chosen and rejected differ.
        reference_logits: The reference's logits at the disagreement voxels, shape `(B, C, n)`.
    """

    target: Any
    disagreement: Disagreement
    reference_logits: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> PreferenceTarget:
        """The same with nnU-Net's target on `device`; the rest is made there."""
        if isinstance(self.target, list):
            target: Any = [part.to(device, non_blocking=non_blocking) for part in self.target]
        else:
            target = self.target.to(device, non_blocking=non_blocking)
        return replace(self, target=target)


class MAPOLoss(nn.Module):
    """λ · base loss + preference loss for a `PreferenceTarget` (eq. 7), else the base loss.

    Args:
        base: nnU-Net's loss.
        labels: Meaning of the segmentation heads.
        beta: β of eq. 2.
        lambda_supervised: λ of eq. 7.
        loss_type: Loss of a pair, see `preference_losses`.
        label_smoothing: Of that loss.
        kappa: κ of `voxel_loss`, which takes the place of the loss of the averaged margin; None:
            it does not.

    Attributes:
        supervised: Base loss of the last forward pass, without λ, a scalar tensor.
    """

    def __init__(
        self,
        base: nn.Module,
        labels: Labels,
        *,
        beta: float,
        lambda_supervised: float,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        kappa: float | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.labels = labels
        self.beta = beta
        self.lambda_supervised = lambda_supervised
        self.kappa = kappa
        self._pair_loss = partial(
            preference_loss, loss_type=loss_type, beta=beta, label_smoothing=label_smoothing
        )
        self.supervised = torch.tensor(math.nan)
        self._rewards: Tensor | None = None

    @property
    def rewards(self) -> Rewards:
        """Rewards of the last forward pass; NaN where it had no preferences."""
        # Read only here, after the step: reading waits for the device.
        values = [math.nan] * 5 if self._rewards is None else self._rewards.tolist()
        return Rewards(*values)

    def step_values(self) -> dict[str, float]:
        """Values of the last forward pass under the names that are logged."""
        rewards = self.rewards
        return {
            "loss/supervised": float(self.supervised),
            "loss/dpo": rewards.loss,
            "rewards/chosen": rewards.chosen,
            "rewards/rejected": rewards.rejected,
            "rewards/margins": rewards.margins,
            "rewards/accuracies": rewards.accuracies,
        }

    def forward(self, output: Any, target: Any) -> Tensor:
        """Loss of a batch, a scalar; `output` as the network gives it."""
        if not isinstance(target, PreferenceTarget):
            loss: Tensor = self.base(output, target)
            self.supervised, self._rewards = loss.detach(), None
            return _spread_nan(loss)
        supervised = self.base(output, target.target)
        with torch.autocast(target.reference_logits.device.type, enabled=False):
            preference = self._preference_loss(output, target)
        self.supervised = supervised.detach()
        return _spread_nan(self.lambda_supervised * supervised + preference)

    def _preference_loss(self, output: Any, target: PreferenceTarget) -> Tensor:
        """Loss of the pairs, summed over the patches with one, divided by the batch size.

        The other patches have a constant loss and a gradient of exactly 0; the constant is left
        out, so that the training loss stays comparable.
        """
        pairs = target.disagreement
        logits = pairs.gather(output[0] if isinstance(output, (list, tuple)) else output)
        deltas = voxel_margins(logits, pairs) - voxel_margins(target.reference_logits, pairs)
        if self.kappa is None:
            losses = self._pair_loss(average(deltas, pairs))
        else:
            losses = voxel_loss(self._pair_loss(deltas), pairs, beta=self.beta, kappa=self.kappa)
        self._rewards = self._mean_rewards(logits.detach(), losses.detach(), target)
        return (losses * pairs.has_pair).mean()

    def _mean_rewards(self, logits: Tensor, losses: Tensor, target: PreferenceTarget) -> Tensor:
        pairs = target.disagreement
        margins = margin(logits, pairs) - margin(target.reference_logits, pairs)
        chosen = chosen_log_likelihood(logits, pairs, self.labels) - chosen_log_likelihood(
            target.reference_logits, pairs, self.labels
        )
        rewards = self.beta * torch.stack([chosen, chosen - margins, margins])
        values = torch.cat([losses[None], rewards, (margins > 0).float()[None]])
        return (values * pairs.has_pair).sum(1) / pairs.has_pair.sum()


def _spread_nan(loss: Tensor) -> Tensor:
    """The loss itself if it is finite; else NaN, and so is every gradient.

    So the gradient alone tells whether a step can be taken, and with several ranks it tells all.
    """
    return loss * (1 + 0 * loss.detach())
