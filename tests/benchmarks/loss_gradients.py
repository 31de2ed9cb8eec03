"""How large the gradient of each base loss is beside that of Dice + CE, on a data set of yours.

Norm of the gradient of all weights, the losses on the same output of the plans' network for the
same batches of preprocessed training cases. Tells which lambda_supervised to start from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from tiny_dataset import quiet
from torch import nn

TRAINERS = {
    "Dice + CE": "nnUNetTrainer",
    "CE": "nnUNetTrainerCELoss",
    "Dice": "nnUNetTrainerDiceLoss",
    "Focal": "nnUNetTrainerFocalLoss",
    "Dice + Focal": "nnUNetTrainerDiceFocalLoss",
    "Lovász-softmax": "nnUNetTrainerLovaszLoss",
    "Hausdorff": "nnUNetTrainerHausdorffLoss",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="name or number")
    parser.add_argument("configuration", help="such as 2d")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans (nnUNetPlans)")
    parser.add_argument("--checkpoint", type=Path, help="weights of a stock training (random)")
    parser.add_argument("--batches", type=int, default=12, help="number of batches (12)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # nnU-Net draws from it
    with quiet():
        trainer, losses = _make_losses(arguments)
        if arguments.checkpoint is not None:
            checkpoint = torch.load(arguments.checkpoint, map_location="cpu", weights_only=False)
            trainer.network.load_state_dict(checkpoint["network_weights"])
        batches, _ = trainer.get_dataloaders()
    values = np.array([_measure(trainer, losses, next(batches)) for _ in range(arguments.batches)])
    ratios = values[:, :, 1] / values[:, :1, 1]
    print(
        "| loss | mean value | gradient, times that of Dice + CE: median (min-max) |\n|---|---|---|"
    )
    for number, name in enumerate(losses):
        ratio, mean = ratios[:, number], values[:, number, 0].mean()
        spread = f"{np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f})"
        print(f"| {name} | {mean:.3f} | {spread} |")


def _make_losses(arguments: argparse.Namespace) -> tuple[Any, dict[str, nn.Module]]:
    """Trainer of the stock loss, and each loss as its trainer builds it."""
    trainers = {
        name: get_trainer_from_args(
            arguments.dataset, arguments.configuration, 0, trainer, arguments.plans,
            device=torch.device("cpu"),
        )
        for name, trainer in TRAINERS.items()
    }  # fmt: skip
    trainers["Dice + CE"].initialize()
    return trainers["Dice + CE"], {name: each._build_loss() for name, each in trainers.items()}


def _measure(trainer: Any, losses: dict[str, nn.Module], batch: Any) -> list[tuple[float, float]]:
    """Value and norm of the gradient of each loss."""
    output, weights = trainer.network(batch["data"]), list(trainer.network.parameters())
    measured = []
    for loss in losses.values():
        value = loss(output, batch["target"])
        gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        norm = torch.stack([each.norm() for each in gradients if each is not None]).norm()
        measured.append((value.item(), norm.item()))
    return measured


if __name__ == "__main__":
    main()
