"""Takes the next missing cell, as long as there is time."""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_mapo.guards.checkpoint import FINAL
from nnunetv2_mapo.guards.start import InUseError, lock_folder

from .arms import UnknownSettingsError
from .plan import Cell
from .provenance import describe_code
from .results import dump, find_cells, path_of, read_results, write_result
from .training import Settings, base_cell, build_trainer_class, train_cell

_FIRST_GUESS_S = 240.0
_MARGIN = 1.15


def run(cells: Sequence[Cell], settings: Settings, minutes: float) -> int:
    """Train the missing cells in their order; the number of those that failed.

    Args:
        cells: Which ones.
        settings: Where and how.
        minutes: No cell is begun that is not expected to end within these.
    """
    end = time.monotonic() + 60 * minutes
    describe_code()  # now: the sources may be edited while this runs
    num_failed = 0
    for cell in cells:
        if path_of(cell).exists() or not _can_train(cell, settings):
            continue
        needed = expect_seconds(cell, read_results(find_cells()))
        base = base_cell(cell)
        if base and not (settings.model(base) / FINAL).is_file():
            needed += expect_seconds(base, read_results(find_cells()))
        left = end - time.monotonic()
        if needed > left:
            print(f"stopped: {cell.name} needs about {needed:.0f} s, {max(left, 0):.0f} s are left")
            break
        num_failed += not _train_or_report(cell, settings)
    return num_failed


def expect_seconds(cell: Cell, results: Mapping[Cell, Mapping[str, Any]]) -> float:
    """How long a cell will take, by the cells most like it."""
    for size in (3, 2, 1):  # same regime, data set and arm, then fewer of them
        alike = [each for other, each in results.items() if other[:size] == cell[:size]]
        if alike:
            return _MARGIN * statistics.median(each["seconds"]["all"] for each in alike)
    return _FIRST_GUESS_S


def claim(cell: Cell, settings: Settings) -> bool:
    """Keep other processes from a cell until this one ends; whether it was free.

    The operating system's lock on a file: the claim of a process that died is none.
    """
    folder = settings.work / "claims" / cell.name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock_folder(folder)
    except InUseError:
        return False
    return True


def _can_train(cell: Cell, settings: Settings) -> bool:
    try:
        build_trainer_class(cell, settings)
    except UnknownSettingsError as error:
        print(f"{cell.name}: skipped: {error}")
        return False
    return True


def _train_or_report(cell: Cell, settings: Settings) -> bool:
    """Train a cell unless another process has it; False if it failed."""
    base = base_cell(cell)
    path = settings.work / "failed" / f"{cell.name.replace('/', '-')}.txt"
    path.unlink(missing_ok=True)  # of an earlier run
    try:
        if base and not (settings.model(base) / FINAL).is_file():
            if not claim(base, settings):
                return True  # it comes again, when its base is trained
            _train_and_write(base, settings)
        if claim(cell, settings) and not path_of(cell).exists():
            _train_and_write(cell, settings)
    except Exception:  # whatever a cell fails with, it is reported and the others go on
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())
        print(f"{cell.name}: FAILED, see {path}", flush=True)
        return False
    return True


def _train_and_write(cell: Cell, settings: Settings) -> None:
    content = train_cell(cell, settings)
    dump(content)  # fails in a smoke test as well
    if settings.steps is None and not path_of(cell).exists():
        write_result(cell, content)
    print(f"{cell.name}: {describe(content)}", flush=True)


def describe(content: Mapping[str, Any]) -> str:
    """A finished cell in one line."""
    dice = [value for value in content["metrics"]["Dice"] if not math.isnan(value)]
    seconds = {name: round(value) for name, value in content["seconds"].items()}
    speed = content["steps"] / content["seconds"]["training"]
    pairs = ", ".join(f"{each['pairs']}/{each['samples']}" for each in content["rounds"])
    return (
        f"Dice {100 * statistics.mean(dice):.2f}, {seconds['all']} s (CPU {seconds['cpu']} s): "
        f"training {seconds['training']} ({speed:.1f} steps/s), mining {seconds['mining']}, "
        f"validation {seconds['validation']}{'; pairs ' + pairs if pairs else ''}"
    )
