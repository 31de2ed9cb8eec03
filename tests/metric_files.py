"""Metrics and trainings of made-up methods, as commands leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.tools.evaluate import Evaluation, tabulate_values, write_evaluation
from nnunetv2_mapo.tools.metrics import METRICS

PROVENANCE = {
    "implementation": "MONAI 1.5",
    "unit": "mm",
    "volume_unit": "ml",
    "tolerance": "1 mm",
}
Dice = Mapping[str, float]  # of each case
RISING = {f"case_{number}": 0.1 * number for number in range(8)}
HIGHER = {case: dice + 0.05 + 0.001 * dice for case, dice in RISING.items()}


def write_metrics(folder: Path, dice: Dice, **provenance: str) -> None:
    others = dict.fromkeys(METRICS, 1.0)
    values = {case: {"1": {**others, "Dice": value}} for case, value in dice.items()}
    write_evaluation(Evaluation(tabulate_values(values), {**PROVENANCE, **provenance}), folder)


def write_training(
    fold: Path,
    config: MAPOConfig | None = None,
    pairs: Sequence[float] = (),
    num_samples: int = 480,
    **mapo: Any,
) -> None:
    """Write the checkpoint of a finished training of six epochs: two of them warm-up, two rounds.

    Args:
        fold: nnU-Net's folder of the fold.
        config: Settings of MAPO; None: of a stock trainer.
        pairs: Of both rounds.
        num_samples: Of a round.
        mapo: More of what a checkpoint holds of MAPO.
    """
    nan = float("nan")
    plan = {"patch_size": [8, 8], "architecture": {}, "batch_dice": True}
    logged = {
        **dict.fromkeys(("mean_fg_dice", "ema_fg_dice", "train_losses", "val_losses"), [0.5] * 6),
        "epoch_start_timestamps": [100.0 * epoch for epoch in range(6)],
        "epoch_end_timestamps": [100.0 * epoch + 40 for epoch in range(6)],
    }
    if pairs:
        logged |= dict.fromkeys(("loss/dpo", "rewards/margins", "rewards/accuracies"), [0.5] * 6)
        logged["mining/pairs"] = [nan] * 2 + [pairs[0]] * 2 + [pairs[1]] * 2
        logged["mining/samples"] = [nan] * 2 + [float(num_samples)] * 4
    checkpoint = {
        "network_weights": {"w": torch.zeros(2)},
        "current_epoch": 6,
        "trainer_name": fold.parent.name.split("__")[0],
        "init_args": {"plans": {"configurations": {"2d": plan}}, "configuration": "2d"},
        "logging": logged,
    }
    if config is not None:
        checkpoint["mapo"] = {"config": config.to_dict(), **mapo}
    fold.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, fold / "checkpoint_final.pth")
