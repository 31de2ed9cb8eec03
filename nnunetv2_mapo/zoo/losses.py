"""Segmentation losses that nnU-Net does not ship, for its logits and targets.

All take `(output, target)` of one resolution: logits, shape `(B, C, *spatial)`, and nnU-Net's
target, see `TargetFormat`. They compute in float32 and return a scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn

from nnunetv2_mapo.support.errors import InputError

FOCAL_GAMMA = 2.0  # the best one in table 1b of arXiv:1708.02002, and MONAI's default
# Measured, see docs/reference/networks-and-losses.md: with it the gradient is 1.4 times that of
# Dice + CE before a training and 2.3 times after it.
HAUSDORFF_WEIGHT = 0.25


def replace_loss(
    stock: nn.Module, make_loss: Callable[[Any], nn.Module]
) -> DeepSupervisionWrapper | nn.Module:
    """Put another loss into nnU-Net's, inside its deep supervision if there is any.

    Args:
        stock: What `nnUNetTrainer._build_loss` returns.
        make_loss: Makes the loss of one resolution from nnU-Net's loss of one resolution, Dice + CE
            (`DC_and_CE_loss`, or `DC_and_BCE_loss` with regions).

    Returns:
        The same with nnU-Net's own weights of the resolutions.
    """
    if not isinstance(stock, DeepSupervisionWrapper):
        return make_loss(stock)
    stock.loss = make_loss(stock.loss)
    return stock


class SplitTarget(NamedTuple):
    """A target in the form in which losses take it.

    Attributes:
        heads: 1 where a head should be on, else 0, shape `(B, C, *spatial)`, float32.
        is_counted: False for ignored voxels, shape `(B, 1, *spatial)`, bool.
    """

    heads: Tensor
    is_counted: Tensor


@dataclass(frozen=True)
class TargetFormat:
    """Form of nnU-Net's targets.

    Classes: shape `(B, 1, *spatial)` with class indices, and the ignore label where it applies.
    Regions: one binary channel each, shape `(B, C, *spatial)`, and one more behind them that is 1
    in the ignored voxels, if there is an ignore label.

    Attributes:
        has_regions: Whether heads are overlapping regions (sigmoid) instead of classes (softmax).
        ignore_label: Label whose voxels count nowhere; None if there is none.
    """

    has_regions: bool = False
    ignore_label: int | None = None

    @classmethod
    def of(cls, label_manager: Any) -> TargetFormat:
        """Form of the targets by nnU-Net's label manager."""
        return cls(label_manager.has_regions, label_manager.ignore_label)

    def split(self, output: Tensor, target: Tensor) -> SplitTarget:
        """Split a target into what the heads should be and what counts."""
        is_counted = torch.ones_like(target[:, :1], dtype=torch.bool)
        if self.has_regions:
            if self.ignore_label is not None:
                is_counted = target[:, -1:] == 0
            return SplitTarget(target[:, : output.shape[1]].float(), is_counted)
        if self.ignore_label is not None:
            is_counted = target != self.ignore_label
        heads = torch.zeros_like(output, dtype=torch.float32)
        return SplitTarget(heads.scatter_(1, (target * is_counted).long(), 1.0), is_counted)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each head, the same shape."""
        return logits.sigmoid() if self.has_regions else logits.softmax(1)


class FocalLoss(nn.Module):
    """Focal loss -(1 - p)^γ log p, a mean over the counted voxels (arXiv:1708.02002), by MONAI.

    p is the probability of the right class by softmax, as in cross-entropy, which this is with
    γ = 0. With regions p is that of the right side of each sigmoid head, and the mean is over the
    heads as well. Without a counted voxel it is 0.
    """

    def __init__(self, target_format: TargetFormat) -> None:
        super().__init__()
        from monai.losses.focal_loss import FocalLoss as MonaiFocalLoss  # takes seconds to import

        self.target_format = target_format
        self.focal = MonaiFocalLoss(
            gamma=FOCAL_GAMMA, use_softmax=not target_format.has_regions, reduction="none"
        )

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch."""
        return self.of(output, self.target_format.split(output, target))

    def of(self, output: Tensor, target: SplitTarget) -> Tensor:
        """Loss of a batch whose target is split already."""
        heads, is_counted = target
        losses: Tensor = self.focal(output.float(), heads)
        # with classes only the right one's entry is not 0
        voxels = losses.mean(1, True) if self.target_format.has_regions else losses.sum(1, True)
        return (voxels * is_counted).sum() / is_counted.sum().clamp(min=1)


class DiceFocalLoss(nn.Module):
    """nnU-Net's Dice loss + focal loss.

    Not MONAI's loss of this name: it has no ignore label, shares no statistics among ranks, and
    takes the focal loss of sigmoids where the network's classes are those of a softmax.

    Args:
        dice: nnU-Net's Dice loss, as it is in its default loss.
        target_format: Form of the targets.
    """

    def __init__(self, dice: nn.Module, target_format: TargetFormat) -> None:
        super().__init__()
        self.dice = dice
        self.focal = FocalLoss(target_format)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch."""
        split = self.focal.target_format.split(output, target)
        dice: Tensor = self.dice(output.float(), split.heads, loss_mask=split.is_counted)
        return dice + self.focal.of(output, split)


class LovaszLoss(nn.Module):
    """Lovász-softmax loss (arXiv:1705.08790); with regions the same of each sigmoid head.

    A mean over the classes, background included, that the ground truth has, as in the authors' own
    code; without the background nothing would speak against foreground in a patch that has none.
    With regions, which have no background, the mean is over all of them: if the ground truth lacks
    one, its loss is its largest probability.

    Args:
        target_format: Form of the targets.
        batch_dice: nnU-Net's setting: whether all samples of this process are one set of voxels, or
            each sample is one and the losses are averaged.
    """

    def __init__(self, target_format: TargetFormat, *, batch_dice: bool) -> None:
        super().__init__()
        self.target_format = target_format
        self.batch_dice = batch_dice

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch."""
        heads, is_counted = self.target_format.split(output, target)
        probabilities = self.target_format.probabilities(output.float())
        errors = self._as_sets((heads - probabilities).abs() * is_counted)
        foreground = self._as_sets(heads.bool() & is_counted)
        # one class at a time: to sort needs several times the memory of what is sorted
        sets = zip(errors.unbind(1), foreground.unbind(1), strict=True)
        losses = torch.stack([lovasz_jaccard(*of_class) for of_class in sets], 1)
        if self.target_format.has_regions:
            is_meant = self._as_sets(is_counted).any(-1).expand_as(losses)
        else:
            is_meant = foreground.any(-1)
        num_classes = is_meant.sum(1)
        of_sets = (losses * is_meant).sum(1) / num_classes.clamp(min=1)
        return of_sets.sum() / (num_classes > 0).sum().clamp(min=1)

    def _as_sets(self, values: Tensor) -> Tensor:
        """From `(B, C, *spatial)` to `(sets, C, voxels)`."""
        flat = values.flatten(2)
        return flat.transpose(0, 1).flatten(1).unsqueeze(0) if self.batch_dice else flat


def lovasz_jaccard(errors: Tensor, foreground: Tensor) -> Tensor:
    """Lovász extension of the Jaccard loss 1 - |A ∩ B| / |A ∪ B| (Definition 2).

    Where every error is 0 or 1 this is the Jaccard loss itself. A voxel with error 0 that is not
    in the foreground changes neither value nor gradient.

    Args:
        errors: Error m of each voxel, in [0, 1], shape `(*, n)`: 1 - p in the foreground, p
            elsewhere, with the probability p of the foreground.
        foreground: Ground truth A, bool, shape `(*, n)`. If it is empty, the result is the largest
            error: a single wrong voxel already has the Jaccard loss 1.

    Returns:
        Shape `(*)`. Its gradient is that of Algorithm 1.
    """
    order = errors.detach().argsort(-1, descending=True)
    increments = jaccard_increments(foreground.gather(-1, order))
    weights = torch.zeros_like(errors).scatter_(-1, order, increments.to(errors.dtype))
    return (errors * weights).sum(-1)


def jaccard_increments(foreground: Tensor) -> Tensor:
    """By how much the Jaccard loss grows as one voxel after the other is segmented wrongly.

    Args:
        foreground: Ground truth in the order of the voxels, bool, shape `(*, n)`.

    Returns:
        Vector g of Definition 2 for the first voxel, the second …, float32, shape `(*, n)`. All are
        >= 0; their sum is 1.
    """
    num_foreground = foreground.sum(-1, keepdim=True)
    intersection = (num_foreground - foreground.cumsum(-1)).float()
    union = (num_foreground + (~foreground).cumsum(-1)).float()
    # Not as differences of the loss: those of neighbours vanish in float32 among millions of voxels
    increments = torch.where(foreground, 1 / union, intersection / (union * (union - 1)))
    return increments.nan_to_num(1.0)  # 0 / 0 only where an empty foreground meets its first error


class HausdorffLoss(nn.Module):
    """nnU-Net's Dice + CE + w log(1 + Hausdorff loss by distance transforms), by MONAI.

    The Hausdorff loss is (p - y)² (d_p² + d_y²), a mean over voxels, foreground classes and samples
    (Karimi and Salcudean, arXiv:1904.10030), with the distances d in voxels to the borders of the
    segmentation p > 0.5 and of the ground truth y.

    The authors keep it as large as the Dice loss next to it by a weight that they compute anew
    after each epoch. The logarithm needs nothing to be stored for that: its gradient is that of the
    Hausdorff loss divided by 1 + Hausdorff loss. w is `HAUSDORFF_WEIGHT`.

    Args:
        stock: nnU-Net's default loss.
        target_format: Form of the targets.

    Raises:
        InputError: There is an ignore label.
    """

    def __init__(self, stock: nn.Module, target_format: TargetFormat) -> None:
        super().__init__()
        if target_format.ignore_label is not None:
            message = (
                f"The Hausdorff loss cannot be used with the ignore label "
                f"({target_format.ignore_label}) of this data set: a distance to the border of a "
                "structure is unknown where a part of it may be in ignored voxels. Choose a "
                "trainer with another loss, such as nnUNetTrainer or nnUNetTrainerLovaszLoss."
            )
            raise InputError(message)
        from monai.losses.hausdorff_loss import LogHausdorffDTLoss  # takes seconds to import

        self.stock = stock
        self.target_format = target_format
        self.distance = LogHausdorffDTLoss(
            include_background=target_format.has_regions,
            sigmoid=target_format.has_regions,
            softmax=not target_format.has_regions,
        )

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch."""
        stock: Tensor = self.stock(output, target)
        heads = self.target_format.split(output, target).heads
        distance: Tensor = self.distance(output.float(), heads)
        return stock + HAUSDORFF_WEIGHT * distance
