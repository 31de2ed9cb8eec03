"""Metrics of made-up methods, as `nnUNetv2_mapo evaluate` leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
