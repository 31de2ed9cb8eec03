"""Disk that the preferences of a training need, estimated before any is mined."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding, say_export
from nnunetv2_mapo.tools.doctor.folders import format_bytes

# Measured: bytes of all `CASE.b2nd` of a round / bytes of the same cases' preprocessed
# segmentations, in 66 rounds of Kvasir-SEG (2D) and MSD Hippocampus (3D).
USUAL_FACTOR = 6.1
LARGEST_FACTOR = 26.0
_PER_CASE = 2 * 4096 + 1024  # record and manifest entry; each file fills blocks of 4096 bytes


class Estimate(NamedTuple):
    """Bytes of the preferences of all rounds.

    Attributes:
        usual: Enough for a network that has learnt something when it mines.
        largest: Enough for one that has not.
    """

    usual: float
    largest: float


def estimate_preferences(folder: Path, training: Sequence[str], num_rounds: int) -> Estimate:
    """Disk that `fold_X/preferences` needs when the last round has been mined.

    A case's file holds segmentation, chosen and rejected, compressed, so its size follows from
    that of the preprocessed segmentation, and from how ragged the candidates are. Measured over
    whole rounds: 1.1 to 2.5 times (2D, default rates), 6.1 times (2D, high rates), 1.3 to 5.4 times
    (3D); 20 to 26 times where the network had been trained for a few steps only, so that its
    candidates were speckles.

    Args:
        folder: Preprocessed cases, `CASE_seg.b2nd` or `CASE.npz` (which holds the image too, so
            that the estimate is too high).
        training: Identifiers of the training cases.
        num_rounds: Rounds of mining.
    """
    sizes = sum(_segmentation_bytes(folder, case) for case in training)
    fixed = _PER_CASE * len(training)
    return Estimate(*(num_rounds * (f * sizes + fixed) for f in (USUAL_FACTOR, LARGEST_FACTOR)))


def _segmentation_bytes(folder: Path, case: str) -> int:
    files = (folder / f"{case}_seg.b2nd", folder / f"{case}.npz")
    return next((path.stat().st_size for path in files if path.is_file()), 0)


def check_disk(estimate: Estimate, results: Path, num_rounds: int) -> Finding:
    """Compare what the preferences need with what is free.

    Args:
        estimate: Of `estimate_preferences`.
        results: nnU-Net's folder of results.
        num_rounds: Rounds of mining.
    """
    free = shutil.disk_usage(results).free
    usual, largest = map(format_bytes, estimate)
    what = (
        f"preferences of {num_rounds} rounds need at most about {largest}, usually less than "
        f"{usual} (checkpoints not counted); {format_bytes(free)} are free in {results}"
    )
    if free >= estimate.largest:
        return Finding(OK, what)
    mend = (
        f"{say_export('nnUNet_results', '/on/a/larger/disk')}  "
        "(or train a variant with a smaller num_rounds)"
    )
    return Finding(NOTE if free >= estimate.usual else PROBLEM, what, mend)
