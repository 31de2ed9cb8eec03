"""What a training needs of the machine: versions, nnU-Net's folders, disk."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile

import nnunetv2_mapo
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
# Measured: bytes of all `CASE.b2nd` of a round / bytes of the same cases' preprocessed
# segmentations, in 66 rounds of Kvasir-SEG (2D) and MSD Hippocampus (3D): 1.1 to 5.4 with the
# default rates, 6.1 with high ones; 20 to 26 where the network had been trained for a few steps.
FACTOR = 6.1
_PER_CASE = 2 * 4096 + 1024  # record and manifest entry; each file fills blocks of 4096 bytes
# Three checkpoints (best, latest, one that is being written), each of the weights and at most two
# moments of them, and the reference.
NUM_NETWORKS = 3 * 3 + 1


def describe_versions() -> Finding:
    """Versions of what a training runs on, by their metadata."""
    own = f"Python {platform.python_version()}, nnunetv2-mapo {nnunetv2_mapo.__version__}"
    try:
        others = [f"{name} {metadata.version(name)}" for name in ("nnunetv2", "torch")]
    except metadata.PackageNotFoundError as error:
        return Finding(NOTE, f"{own}; {error.name} is not installed")
    return Finding(OK, ", ".join([own, *others]))


def check_folder(variable: str, *, is_needed: bool = True) -> Finding:
    """Check that an environment variable names a folder; without need its lack is a note."""
    value = os.environ.get(variable)
    level = PROBLEM if is_needed else NOTE
    if not value:
        mend = f"export {variable}=FOLDER  (in ~/.bashrc for every terminal)"
        return Finding(level, f"{variable} is not set", mend)
    if not Path(value).is_dir():
        mend = f"mkdir -p {shlex.quote(value)}  (or name another: export {variable}=FOLDER)"
        return Finding(level, f"{variable}={value} is not a folder", mend)
    return Finding(OK, f"{variable}={value}, {_format(shutil.disk_usage(value).free)} free")


def check_writable(folder: Path, mend: str) -> list[Finding]:
    """Write to a folder or, if it does not exist yet, to the one that it would be made in."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    try:
        with TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        return [Finding(PROBLEM, f"{there} cannot be written to: {error.strerror}", mend)]
    return []


def estimate_disk(
    folder: Path, training: Sequence[str], num_rounds: int, *, network_bytes: int
) -> float:
    """Bytes of the checkpoints and of the preferences of all rounds.

    Args:
        folder: Preprocessed cases, `CASE_seg.b2nd` or `CASE.npz` (which holds the image too, so
            that the estimate is too high).
        training: Identifiers of the training cases.
        num_rounds: Rounds of mining, 0 of a trainer without MAPO.
        network_bytes: Size of the network's weights.
    """
    files = (folder / f"{case}{end}" for case in training for end in ("_seg.b2nd", ".npz"))
    segmentations = sum(path.stat().st_size for path in files if path.is_file())
    preferences = num_rounds * (FACTOR * segmentations + _PER_CASE * len(training))
    return NUM_NETWORKS * network_bytes + preferences


def check_disk(num_bytes: float, results: Path) -> Finding:
    """Compare what a training needs with what is free in nnU-Net's folder of results."""
    free = shutil.disk_usage(results).free
    needed = f"checkpoints and preferences usually need less than {_format(num_bytes)}"
    what = f"{needed}; {_format(free)} are free in {results}"
    if free >= num_bytes:
        return Finding(OK, what)
    return Finding(PROBLEM, what, "free space, or train a variant with a smaller num_rounds")


def _format(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
