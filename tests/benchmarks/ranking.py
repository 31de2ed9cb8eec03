"""Mining a large case by each metric against mining it by Dice, without the network's passes.

These are the same for every metric, so the ratios of whole rounds are smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from alternate import Row, parse_repeats, print_table, time_ratios
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, zoom

from nnunetv2_mapo.method.config import RATES_3D, MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.pairing import PairFinder
from nnunetv2_mapo.method.ranking import Ranking
from nnunetv2_mapo.method.valid import METRICS

SIZE = 256
NUM_PARTS = 200  # of all candidates
SPACING_MM = (1.0, 0.8, 0.8)
LABELS = Labels(2)
BAR = 2.0

Volume = NDArray[np.bool_]


def main() -> None:
    print_table(_rows(parse_repeats(__doc__, default=3)))


def _rows(repeats: int) -> Iterator[Row]:
    for name, truth in {
        "organ": make_organ(),
        "lesions": make_lesions(),
        "vessels": make_vessels(),
    }.items():
        case = torch.from_numpy(make_candidates(truth)), torch.from_numpy(truth).short()
        by_dice = partial(make_finder("dice").find_pairs, *case)
        for metric in METRICS[1:]:
            if metric == "cldice" and name != "vessels":
                continue  # it is about tubes; a solid organ's takes minutes
            by_metric = partial(make_finder(metric).find_pairs, *case)
            num_parts = by_metric().records[0].num_parts
            ratios = time_ratios(by_metric, by_dice, repeats)
            yield Row(f"{name}, {num_parts} parts, {metric} / Dice", ratios, BAR)


def make_finder(metric: str) -> PairFinder:
    ranking = None if metric == "dice" else Ranking.by(metric, 1.0, LABELS)
    config = MAPOConfig(metric=metric, reference="none")
    return PairFinder(LABELS, config, (128, 128, 128), ranking, SPACING_MM)


def smooth_noise(rng: np.random.Generator, sigma: float) -> NDArray[np.float32]:
    """Standard normal noise with a correlation of some voxels, made coarse and enlarged."""
    noise = gaussian_filter(rng.normal(size=(SIZE // 4,) * 3), sigma / 4).astype(np.float32)
    return zoom(noise / noise.std(), 4, order=1)


def make_organ() -> Volume:
    """One object of a radius of about 60 voxels."""
    axes = np.meshgrid(*[np.arange(SIZE, dtype=np.float32) - SIZE / 2] * 3, sparse=True)
    distance = np.sqrt(sum(axis**2 for axis in axes))
    return distance + 8 * smooth_noise(np.random.default_rng(0), 12) < 60


def make_lesions() -> Volume:
    """About a hundred objects of many sizes."""
    return smooth_noise(np.random.default_rng(1), 8) > 2.6


def make_vessels() -> Volume:
    """A tree of tubes of a radius of 2 to 4 voxels, all of one piece."""
    rng, truth = np.random.default_rng(2), np.zeros((SIZE,) * 3, bool)
    for radius in (2, 3, 4):
        lines = np.zeros_like(truth)
        for _ in range(12):
            end = rng.random(3) * (SIZE - 1)
            for share in np.linspace(0, 1, 2 * SIZE):
                place = SIZE / 2 + share * (end - SIZE / 2) + 6 * np.sin(9 * share + end)
                lines[tuple(np.clip(np.rint(place), 0, SIZE - 1).astype(int))] = True
        truth |= binary_dilation(lines, iterations=radius)
    return truth


def make_candidates(truth: Volume) -> NDArray[np.uint8]:
    """A plain prediction, and as many others as the paper has in 3D, with some parts each."""
    rng = np.random.default_rng(3)
    plain = truth ^ (binary_dilation(truth) & (smooth_noise(rng, 12) > 2))
    near = np.argwhere(binary_dilation(truth, iterations=2))
    return np.stack([plain, *(_exchange_parts(plain, near, rng) for _ in RATES_3D[1:])]).astype(
        np.uint8
    )


def _exchange_parts(plain: Volume, near: NDArray[np.intp], rng: np.random.Generator) -> Volume:
    """The plain prediction, but the other label in small boxes near the truth."""
    changed = plain.copy()
    for place in rng.choice(near, NUM_PARTS // (len(RATES_3D) - 1)):
        changed[_box(place, rng.integers(2, 10, 3))] ^= True
    return changed


def _box(place: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(place, size, strict=True))


if __name__ == "__main__":
    main()
