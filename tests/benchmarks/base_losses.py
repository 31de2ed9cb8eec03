"""Base losses: forward and backward of one resolution against nnU-Net's Dice + CE.

The ground truth is a few blobs, and the output is that of a network that has learnt most of it: the
distance transforms of the Hausdorff loss depend on both.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from alternate import Row, parse_repeats, print_table, time_ratios
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from nnunetv2_mapo.zoo.losses import (
    DiceFocalLoss,
    FocalLoss,
    HausdorffLoss,
    LovaszLoss,
    TargetFormat,
)

SHAPES = {"3D": (2, 3, 64, 64, 64), "2D": (8, 2, 64, 64)}  # batch, classes, patch


def main() -> None:
    print_table(_rows(parse_repeats(__doc__, default=7)))


def _rows(repeats: int) -> Iterator[Row]:
    targets = TargetFormat()
    for name, shape in SHAPES.items():
        batch_dice = name == "2D"  # as nnU-Net plans it
        dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
        stock = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
        losses: dict[str, nn.Module] = {
            "CE": RobustCrossEntropyLoss(),
            "Dice": stock.dc,
            "Focal": FocalLoss(targets),
            "Dice + Focal": DiceFocalLoss(stock.dc, targets),
            "Lovász-softmax": LovaszLoss(targets, batch_dice=batch_dice),
            "Dice + CE + Hausdorff": HausdorffLoss(stock, targets),
        }
        output, target = _make_batch(shape)
        for loss_name, loss in losses.items():
            ratios = time_ratios(
                lambda loss=loss, output=output, target=target: _step(loss, output, target),
                lambda stock=stock, output=output, target=target: _step(stock, output, target),
                repeats,
            )
            yield Row(f"{name}, {loss_name}", ratios)


def _step(loss: nn.Module, output: Tensor, target: Tensor) -> None:
    torch.autograd.grad(loss(output, target), output)


def _make_batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits, shape `(B, C, *patch)`, and class indices, shape `(B, 1, *patch)`."""
    rng = np.random.default_rng(0)
    smooth = (0, 0, *[6] * (len(shape) - 2))
    truth = torch.from_numpy(gaussian_filter(rng.standard_normal(shape), smooth)).float()
    truth = truth / truth.std()
    noise = torch.from_numpy(gaussian_filter(rng.standard_normal(shape), smooth)).float()
    output = 4 * (truth + 0.5 * noise / noise.std())
    return output.requires_grad_(), truth.argmax(1, keepdim=True).float()


if __name__ == "__main__":
    main()
