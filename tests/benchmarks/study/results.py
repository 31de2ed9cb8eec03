"""One small JSON file for each finished cell."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_mapo.support.files import write_atomically

from .plan import Cell

RESULTS = Path(__file__).parent / "results"
# metrics of each validation case; cells of before have the first four
KEPT = (
    "Dice", "ASD", "HD95", "NSD", "lesion_F1", "lesion_Dice", "false_positive_volume",
    "false_negative_volume", "clDice",
)  # fmt: skip
_DIGITS = 5


def path_of(cell: Cell) -> Path:
    """Its file, whether it is there or not."""
    return RESULTS / cell.regime / cell.dataset / cell.arm / f"seed_{cell.seed}.json"


def write_result(cell: Cell, content: dict[str, Any]) -> None:
    """Write a cell's file, complete or not at all."""
    path = path_of(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{dump(content)}\n".encode())


def read_result(cell: Cell) -> dict[str, Any] | None:
    """Content of a cell's file; None if it is not there."""
    path = path_of(cell)
    return json.loads(path.read_text()) if path.is_file() else None


def read_results(cells: Iterable[Cell]) -> dict[Cell, dict[str, Any]]:
    """Content of the files that are there."""
    found = ((cell, read_result(cell)) for cell in cells)
    return {cell: content for cell, content in found if content is not None}


def find_cells() -> list[Cell]:
    """Cells of all the files that are there."""
    cells = []
    for path in sorted(RESULTS.glob("*/*/*/seed_*.json")):
        regime, dataset, arm = path.parts[-4:-1]
        cells.append(Cell(regime, dataset, arm, int(path.stem.removeprefix("seed_"))))
    return cells


def dump(content: dict[str, Any]) -> str:
    """JSON text with one line for each entry; numbers rounded, NaN as null."""
    lines = (f"{json.dumps(key)}: {json.dumps(_plain(each))}" for key, each in content.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{_DIGITS}g}")
    return value


def read_metric(content: dict[str, Any], metric: str) -> np.ndarray:
    """A metric of each case, mean over the classes, shape `(cases,)`; NaN where it is undefined."""
    return np.array(content["metrics"][metric], dtype=float)
