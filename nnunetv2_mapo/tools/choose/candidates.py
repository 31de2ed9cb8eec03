"""Candidates of an unlabelled image: dropout, and of what it gives a handful that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_mapo.method.choices import disputed_regions
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Log, Miner, mine_within_memory
from nnunetv2_mapo.method.rates import bisect_rate, spread_rates, with_rates
from nnunetv2_mapo.method.selection import Overlap, candidate_dice, count_overlap, mean_dice
from nnunetv2_mapo.method.volumes import Volume
from nnunetv2_mapo.tools.models import TrainedModel

LEAST_DISTANCE = 0.005  # 1 - Dice below which two candidates are the same to an expert


@dataclass(frozen=True)
class Differing:
    """Candidates of an image that differ."""

    label_maps: NDArray[np.int16]  # nnU-Net's labels, `(K, *spatial)`, the plain prediction first
    values: tuple[float, ...]  # dropout rate of each
    widest: tuple[int, int]  # the two that differ in most voxels
    disagreement: float  # voxels in which these two differ, over those of their foreground
    num_regions: int  # of these two that can be asked about


def find_rates(
    miner: Miner, images: Iterable[NDArray[np.float32]], number: int, log: Log
) -> tuple[float, ...]:
    """Dropout rates of the candidates, from 0, as many as the miner's; empty if nothing is found.

    The largest is the one at which the median agreement (Dice) of an image's segmentation with its
    plain one has fallen by `rates_dice_fall`.

    Args:
        miner: Of the model.
        images: Preprocessed ones, each `(channels, *spatial)`.
        number: Images that are looked at; more only if nothing is segmented in these.
        log: Takes what a user should know.
    """
    found, num_seen = list[tuple[int, Tensor, Tensor]](), 0
    for image in images:
        tensor = torch.from_numpy(image)
        plain = segment(miner, tensor, (0.0,), "plain", log)[0]
        if plain.any():
            found.append((num_seen, tensor, plain))
        num_seen += 1
        if found and num_seen >= number:
            break
    if not found:
        if num_seen:
            log("the model segments nothing in the first images: dropout rates of training")
        return ()

    def fall_at(rate: float) -> float:
        agreement = [
            candidate_dice(
                segment(miner, tensor, (rate,), f"rates/{place}", log), plain, miner.labels
            ).item()
            for place, tensor, plain in found
        ]
        return 1 - float(np.median(agreement))

    largest = bisect_rate(fall_at, miner.config.rates_dice_fall)
    return spread_rates(largest, len(miner.sampler.values))


def segment(miner: Miner, image: Tensor, rates: Sequence[float], name: str, log: Log) -> Tensor:
    """Label maps `(K, *spatial)` of an image `(channels, *spatial)` at K rates.

    The miner's seed and the name decide what is dropped.
    """
    work: Callable[[Miner], Volume] = partial(Miner.find_candidates, image=image)
    seed = f"{miner.config.seed}/choose/{name}"
    _, candidates = mine_within_memory(with_rates(miner, rates), work, seed, log)
    return torch.from_numpy(candidates[:])


def make_candidates(
    miner: Miner,
    image: NDArray[np.float32],
    name: str,
    rates: Sequence[float],
    most: int,
    model: TrainedModel,
    log: Log,
) -> Differing | None:
    """Candidates of a preprocessed image that differ; None if fewer than two do.

    Args:
        miner: Of the model.
        image: Shape `(channels, *spatial)`.
        name: Of the image, which decides what is dropped.
        rates: Dropout rates, from 0.
        most: Candidates that are kept, >= 2.
        model: That the miner is of.
        log: Takes what a user should know.
    """
    label_maps = segment(miner, torch.from_numpy(image), rates, name, log)
    in_labels = to_nnunet_labels(label_maps.numpy(), model.label_manager)
    # regions: what nnU-Net's labels cannot say is no difference
    again = model.labels.target_map(torch.from_numpy(in_labels))
    kept = keep_different(measure_distances(again, model.labels), most)
    if len(kept) < 2:
        return None
    chosen = in_labels[kept]
    widest, disagreement = find_widest(chosen)
    regions = disputed_regions(*chosen[list(widest)])
    if not regions:
        return None
    values = tuple(rates[place] for place in kept)
    return Differing(chosen, values, widest, disagreement, len(regions))


def to_nnunet_labels(label_maps: NDArray[Any], label_manager: Any) -> NDArray[np.int16]:
    """Label maps of any shape, of regions bit masks, in nnU-Net's labels."""
    if not label_manager.has_regions:
        return label_maps.astype(np.int16)
    labels = np.zeros(label_maps.shape, np.int16)
    for bit, label in enumerate(label_manager.regions_class_order):  # later ones lie above
        labels[(label_maps >> bit) & 1 == 1] = label
    return labels


def measure_distances(candidates: Tensor, labels: Labels) -> NDArray[np.float64]:
    """1 - mean foreground Dice of each two of K label maps `(K, *spatial)`, `(K, K)`."""
    disputed = (candidates != candidates[0]).any(0)
    agreed = candidates[0][~disputed]
    common = count_overlap(agreed, agreed, labels)  # counted once: it is most of a volume
    parts = candidates[:, disputed]
    distances = np.zeros((len(candidates), len(candidates)))
    for first, second in combinations(range(len(candidates)), 2):
        own = count_overlap(parts[first], parts[second], labels)
        overlap = Overlap(common.intersection + own.intersection, common.total + own.total)
        distances[first, second] = distances[second, first] = 1 - mean_dice(overlap).item()
    return distances


def keep_different(distances: NDArray[np.float64], most: int) -> list[int]:
    """Candidates that differ, the first always, then in turn the farthest from all the kept.

    None is nearer to another than `LEAST_DISTANCE`. `distances` are those of `measure_distances`.
    """
    kept = [0]
    while len(kept) < most:
        nearest = distances[:, kept].min(1)
        farthest = int(nearest.argmax())
        if nearest[farthest] < LEAST_DISTANCE:
            break
        kept.append(farthest)
    return kept


def find_widest(candidates: NDArray[np.int16]) -> tuple[tuple[int, int], float]:
    """The two of K label maps `(K, *spatial)` that differ most, by voxels over their foreground."""
    disputed = (candidates != candidates[0]).any(0)
    num_agreed = int((candidates[0][~disputed] > 0).sum())
    parts = candidates[:, disputed]
    widest, most = (0, 1), 0.0
    for first, second in combinations(range(len(candidates)), 2):
        num_differing = int((parts[first] != parts[second]).sum())
        foreground = num_agreed + int(((parts[first] > 0) | (parts[second] > 0)).sum())
        if (share := num_differing / max(1, foreground)) > most:
            widest, most = (first, second), share
    return widest, most
