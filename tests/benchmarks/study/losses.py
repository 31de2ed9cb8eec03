"""Plain losses that claim what preferences by a metric claim, besides nnU-Net's Dice + CE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.losses.cldice import SoftclDiceLoss
from torch import Tensor, nn

from nnunetv2_mapo.metrics.components import find_components
from nnunetv2_mapo.zoo.losses import TargetFormat, replace_loss

CLDICE_WEIGHT = 0.5  # α of arXiv:2003.07311, which has up to 0.5
CLDICE_ITERATIONS = 10  # of the soft skeleton; at least the largest radius of a vessel in pixels
GLOBAL_WEIGHT, BLOB_WEIGHT = 2.0, 1.0  # α and β of arXiv:2205.08209
_SMOOTH = 1e-5  # nnU-Net's


class BlobLoss(nn.Module):
    """Blob loss (arXiv:2205.08209): the loss of the whole, and the mean soft Dice loss of blobs.

    A blob is a connected component of a foreground class of the ground truth; the other ones are
    masked out. Targets are nnU-Net's classes without an ignore label.
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch, logits `(B, C, *spatial)` and classes `(B, 1, *spatial)`."""
        total: Tensor = GLOBAL_WEIGHT * self.stock(output, target)
        if losses := blob_losses(output.float().softmax(1), target[:, 0]):
            total = total + BLOB_WEIGHT * torch.cat(losses).mean()
        return total / (GLOBAL_WEIGHT + BLOB_WEIGHT)


def blob_losses(probabilities: Tensor, target: Tensor) -> list[Tensor]:
    """Soft Dice loss of each blob `(num_blobs,)`, of each sample and class with some.

    Args:
        probabilities: Shape `(B, C, *spatial)`.
        target: Classes, shape `(B, *spatial)`.
    """
    losses = []
    for sample, truth in zip(probabilities, target.cpu().numpy(), strict=True):
        for label in range(1, len(sample)):
            numbers = find_components(truth == label).astype("int64")
            if not numbers.any():
                continue
            blob = torch.from_numpy(numbers).to(sample.device).flatten()
            size = torch.bincount(blob)
            inside = torch.zeros(len(size), device=sample.device)
            inside = inside.scatter_add(0, blob, sample[label].flatten())
            # number 0 is what belongs to no blob, and is false for each of them
            total = size[1:] + inside[1:] + inside[0]
            losses.append(1 - (2 * inside[1:] + _SMOOTH) / (total + _SMOOTH))
    return losses


class ClDiceLoss(nn.Module):
    """Loss of the whole, and the soft clDice loss (arXiv:2003.07311) of the foreground, MONAI's."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock
        self.cldice = SoftclDiceLoss(
            CLDICE_ITERATIONS, include_background=False, to_onehot_y=True, softmax=True
        )

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch, logits `(B, C, *spatial)` and classes `(B, 1, *spatial)`."""
        cldice: Tensor = self.cldice(output.float(), target)
        total: Tensor = (1 - CLDICE_WEIGHT) * self.stock(output, target) + CLDICE_WEIGHT * cldice
        return total


LOSSES: dict[str, Callable[[nn.Module], nn.Module]] = {"blob": BlobLoss, "cldice": ClDiceLoss}


def add_loss(stock: nn.Module, name: str, label_manager: Any) -> nn.Module:
    """nnU-Net's loss with another one of `LOSSES` on top, in each resolution."""
    assert TargetFormat.of(label_manager) == TargetFormat(), "classes, and no ignore label"
    return replace_loss(stock, LOSSES[name])
