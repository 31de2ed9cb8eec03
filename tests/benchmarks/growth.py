"""How time and memory grow: with cases, voxels, classes and candidates, each at three sizes.

CPU time of this process on one thread, the median of some runs in turns; the exponent is the slope
of log time over log size. Memory is the largest sum of what torch's CPU allocator handed out at
once plus that of numpy, without what was there before.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from alternate import parse_repeats
from loss import gradient, make_batch, margin_form, peak_bytes
from scipy.ndimage import gaussian_filter
from tiny_dataset import perturb

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.pairing import PairFinder
from nnunetv2_mapo.method.store import Round, SampleRecord, stack_preferences

VOXELS, CLASSES, CANDIDATES, CASES = (32, 64, 128), (2, 8, 32), (4, 8, 16), (10, 40, 160)
SIDE, NUM_CLASSES, NUM_CANDIDATES = 64, 3, 7  # what stays where another thing grows


class Point(NamedTuple):
    """What is done at one size; the first is its size."""

    size: int
    function: Callable[[], Any]


def main() -> None:
    torch.set_num_threads(1)
    repeats = parse_repeats(__doc__, default=5)
    print("| what | grows with | sizes | s | MB | exponent of time | of memory |")
    print("|---|---|---|---|---|---:|---:|")
    count_megabytes(list)  # what the profiler itself imports
    with TemporaryDirectory() as folder:
        for what, axis, points in comparisons(Path(folder)):
            seconds = time_points(points, repeats)
            megabytes = [count_megabytes(point.function) for point in points]
            sizes = [point.size for point in points]
            cells = [
                what, axis, " / ".join(map(str, sizes)),
                " / ".join(f"{each:.3f}" for each in seconds),
                " / ".join(f"{each:.1f}" for each in megabytes),
                f"{find_exponent(sizes, seconds):.2f}", f"{find_exponent(sizes, megabytes):.2f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def comparisons(folder: Path) -> Iterator[tuple[str, str, list[Point]]]:
    """Rows of the table."""
    voxels = [Point(side**3, miner(side, NUM_CLASSES, NUM_CANDIDATES)) for side in VOXELS]
    yield "mining a case, without the network", "voxels", voxels
    classes = [Point(number, miner(SIDE, number, NUM_CANDIDATES)) for number in CLASSES]
    yield "mining a case, without the network", "classes", classes
    candidates = [Point(number, miner(SIDE, NUM_CLASSES, number)) for number in CANDIDATES]
    yield "mining a case, without the network", "candidates", candidates
    yield "preference loss", "voxels", [Point(side**3, loss(side, NUM_CLASSES)) for side in VOXELS]
    yield "preference loss", "classes", [Point(number, loss(SIDE, number)) for number in CLASSES]
    cases = [Point(number, round_of(folder / str(number), number)) for number in CASES]
    yield "opening a mined round", "cases", cases


def make_labels(side: int, num_classes: int) -> np.ndarray:
    """Label map of smooth shapes in which every class is found, `(side, side, side)`, int16."""
    field = gaussian_filter(np.random.default_rng(0).standard_normal((side,) * 3), 4)
    limits = np.quantile(field, np.linspace(0, 1, num_classes + 1)[1:-1])
    return np.digitize(field, limits).astype(np.int16)


def miner(side: int, num_classes: int, num_candidates: int) -> Callable[[], Any]:
    """Mining of a case whose candidates are there: what is not a forward pass."""
    truth, random = make_labels(side, num_classes), np.random.default_rng(1)
    candidates = [truth]
    for _ in range(num_candidates - 1):
        changed = perturb(truth, 0.02, random) % num_classes
        candidates.append(changed)
    finder = PairFinder(Labels(num_classes), MAPOConfig(reference="none"), (64, 64, 64))
    label_maps = torch.from_numpy(np.stack(candidates).astype(np.uint8))
    return partial(finder.find_pairs, label_maps, torch.from_numpy(truth))


def loss(side: int, num_classes: int) -> Callable[[], Any]:
    """From the label maps of a batch to the gradient of its logits, without the network."""
    return partial(gradient, margin_form, make_batch(num_classes, 0.05, (side,) * 3))


def round_of(folder: Path, num_cases: int) -> Callable[[], Any]:
    """Reading a finished round's records and checksums, as a training that goes on does."""
    mined, maps = Round(folder, {"round": 1}), make_labels(32, NUM_CLASSES)
    identifiers = [f"case_{number}" for number in range(num_cases)]
    record = SampleRecord([1.0, 0.5], 0, 1, 10, maps.size)
    for identifier in identifiers:
        stack = stack_preferences(maps[None], maps, maps, maps)
        mined.write_case(identifier, stack, [record], (32, 32, 32))
    return partial(mined.find_finished, identifiers)


def time_points(points: list[Point], repeats: int) -> list[float]:
    """Median CPU time of each in s, in turns after one run that does not count."""
    seconds: list[list[float]] = [[] for _ in points]
    for number in range(repeats + 1):
        for place, point in enumerate(points):
            started = time.process_time()
            point.function()
            if number:
                seconds[place].append(time.process_time() - started)
    return [statistics.median(each) for each in seconds]


def count_megabytes(function: Callable[[], Any]) -> float:
    """Largest sum of what torch had at once, and the same of numpy, in MB."""
    tracemalloc.start()
    tensors = peak_bytes(function)
    _, arrays = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (tensors + arrays) / 1e6


def find_exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of log value over log size."""
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)


if __name__ == "__main__":
    main()
