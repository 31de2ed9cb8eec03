"""Pairing: candidates of a training case and its ground truth -> preference pairs and records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.parts import Mask, Slab
from nnunetv2_mapo.method.ranking import RankedSample, Ranking
from nnunetv2_mapo.method.region_pairs import (
    RegionPair,
    RegionPairs,
    even_out,
    pair_regions,
    pair_regions_by,
)
from nnunetv2_mapo.method.selection import Overlap, count_candidates, mean_dice, select_pair
from nnunetv2_mapo.method.store import WEIGHT_ONE, SampleRecord
from nnunetv2_mapo.method.volumes import Volume, make_compressed
from nnunetv2_mapo.method.windows import Index, find_units, split_planes

SLAB = 2**22  # voxels of a slab, so that what is done with one fits into a processor's cache


@dataclass(frozen=True)
class TrainingSample:
    """A part of a case with a preference pair of its own: the case, a slice or a window's cell."""

    place: Index  # of the sample in the case
    slabs: list[Index]  # places of its slabs in the case, in the order of their planes
    read: Callable[[Index], Slab]  # what is at such a place
    overlap: Overlap  # of each candidate, shape `(K, C)`
    num_voxels: int
    has_foreground: bool  # in the ground truth

    @property
    def dice(self) -> list[float]:
        """Dice of each candidate."""
        values: list[float] = mean_dice(self.overlap).tolist()
        return values

    def read_slabs(self) -> Iterator[Slab]:
        """What is in its slabs, one after the other."""
        return map(self.read, self.slabs)


class MinedCase(NamedTuple):
    """Preference pairs of a case: channels [chosen, rejected, weight], the margin behind them.

    They are those of `store.stack_preferences`, `(3 or 4, *spatial)`, int16, compressed in memory;
    0 in samples without a pair.
    """

    preferences: Any  # as of `volumes.make_compressed`
    records: list[SampleRecord]  # one of each training sample, in the order of `find_units`


@dataclass(frozen=True)
class PairFinder:
    """Finds the preference pairs of a case in its candidates; the network has nothing to do."""

    labels: Labels  # meaning of the network's heads
    config: MAPOConfig
    patch_size: Sequence[int]  # of the configuration in voxels, 2 or 3 entries
    ranking: Ranking | None = None  # by what candidates and parts are ranked; None: by their Dice
    # distance of neighbouring voxels along the three axes; in 2D the first is that of slices
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)

    def find_pairs(self, candidates: Volume, segmentation: Volume) -> MinedCase:
        """Pairs of a case by its candidates `(K, *spatial)`, label maps of its three axes.

        The ground truth `(*spatial)` is in nnU-Net's labels, < 0 outside the image. Margins of a
        cached reference stay 0.
        """
        shape = (self.config.num_channels, *segmentation.shape)
        preferences = make_compressed(shape, np.int16)
        has_parts = self.config.pair == "region"
        select = self._select_regions if has_parts else self._select_candidates
        samples = self.find_samples(candidates, segmentation)
        return MinedCase(preferences, [select(sample, preferences) for sample in samples])

    def find_samples(self, candidates: Volume, segmentation: Volume) -> Iterator[TrainingSample]:
        """Training samples of a case, arguments as of `find_pairs`."""
        read = partial(_read_slab, candidates, segmentation, self.labels)
        # metrics but Dice are about all of a sample at once
        most_voxels = SLAB if self.ranking is None else math.prod(segmentation.shape)
        for place in self.find_units(segmentation.shape):
            slabs = split_planes(place, segmentation.shape, most_voxels)
            overlap, num_voxels, has_foreground = None, 0, False
            for slab in map(read, slabs):
                counts = self._count(slab.candidates, slab)
                overlap = counts if overlap is None else overlap.plus(counts)
                num_voxels += slab.target.size
                has_foreground |= bool(slab.target.any())
            assert overlap is not None  # a case has voxels
            yield TrainingSample(place, slabs, read, overlap, num_voxels, has_foreground)

    def find_units(self, shape: Sequence[int]) -> list[Index]:
        """Place of each training sample in a case of this shape."""
        unit = self.config.selection_unit(len(self.patch_size))
        return find_units(shape, self.patch_size, unit, self.config.tile_step_size)

    def _count(self, label_maps: NDArray[np.integer], slab: Slab) -> Overlap:
        """Overlap of label maps `(n, *spatial)` with the ground truth of a slab, `(n, C)`."""
        valid = None if slab.valid is None else torch.from_numpy(slab.valid)
        target = torch.from_numpy(slab.target)
        return count_candidates(torch.from_numpy(label_maps), target, self.labels, valid)

    def _select_candidates(self, sample: TrainingSample, preferences: Any) -> SampleRecord:
        """Write the channels of a sample whose pair is two candidates, see `MinedCase`."""
        scores = self._score(sample)
        # every gap is stored where τ is only known when the round is complete
        tau = self.config.tau if self.config.tau_quantile is None else 0.0
        pair = select_pair(scores or sample.dice, tau, self.config.tau_max)
        num_disagreeing = 0
        if pair.rejected is not None:  # else any two equal maps do; zeros cost augmentation nothing
            for place, slab in zip(sample.slabs, sample.read_slabs(), strict=True):
                chosen = slab.candidates[pair.chosen]
                is_unused = np.zeros(chosen.shape, bool) if slab.valid is None else ~slab.valid
                if self.config.agree:
                    is_unused |= chosen != slab.target
                rejected = np.where(is_unused, chosen, slab.candidates[pair.rejected])
                differs = chosen != rejected
                _write(preferences, place, chosen, rejected, WEIGHT_ONE * differs)
                num_disagreeing += int(differs.sum())
        record = _record(sample, pair.chosen, pair.rejected, num_disagreeing)
        return replace(record, scores=scores)

    def _score(self, sample: TrainingSample) -> list[float] | None:
        """Value of each candidate by the metric that ranks; None if that is Dice."""
        if self.ranking is None:
            return None
        (slab,) = sample.read_slabs()
        return self._score_maps(self.ranking, sample, slab, slab.candidates)

    def _score_maps(
        self, ranking: Ranking, sample: TrainingSample, slab: Slab, maps: Iterable[NDArray[Any]]
    ) -> list[float]:
        others = (slab.target, self._spacing(sample), slab.valid)
        return [round(ranking.value(each, *others), 6) for each in maps]

    def _spacing(self, sample: TrainingSample) -> tuple[float, ...]:
        """Distance of neighbouring voxels along the axes of a sample, in mm."""
        axes = zip(self.spacing_mm, sample.place, strict=True)
        return tuple(spacing for spacing, index in axes if isinstance(index, slice))

    def _select_regions(self, sample: TrainingSample, preferences: Any) -> SampleRecord:
        """Write the channels of a sample with a region pair, see `MinedCase`."""
        ranked, pairs = self._find_regions(sample)
        sizes = self._count_used(sample, pairs) if self.config.part_weight == "part" else None
        num_used, overlap, scores = 0, None, None
        for number, (place, slab) in enumerate(zip(sample.slabs, sample.read_slabs(), strict=True)):
            pair = pairs.put_together(number, slab)
            is_used = self._find_used(pair, slab)
            weight = pair.weight
            if sizes is not None:
                weight = even_out(weight, pair.part, is_used, sizes)
            weight = np.maximum(1, np.rint(weight * WEIGHT_ONE)) * is_used
            rejected = np.where(is_used, pair.rejected, pair.chosen)
            _write(preferences, place, pair.chosen, rejected, weight)
            num_used += int(is_used.sum())
            ends = np.stack((pair.chosen, pair.rejected))
            counts = self._count(ends, slab)
            overlap = counts if overlap is None else overlap.plus(counts)
            if ranked is not None and self.ranking is not None:
                ends_scores = self._score_maps(self.ranking, sample, slab, ends)
                scores = [round(ranked.value, 6), *ends_scores]
        assert overlap is not None  # a sample has voxels
        if num_used == 0:
            for place in sample.slabs:
                _write(preferences, place, *np.zeros((3, *sample.read(place).target.shape)))
        return replace(
            _record(sample, 0, None, num_used),
            num_parts=pairs.num_parts,
            num_preferred=pairs.num_preferred,
            pair_dice=[round(value, 6) for value in mean_dice(overlap).tolist()],
            scores=scores,
        )

    def _find_regions(self, sample: TrainingSample) -> tuple[RankedSample | None, RegionPairs]:
        """The parts of a sample's candidates; by another metric than Dice with what it measured."""
        if self.ranking is None:
            plain = Overlap(*(counts[0] for counts in sample.overlap))
            pairs = pair_regions(sample.read_slabs(), self.labels, self.config.tau, plain)
            return None, pairs
        (slab,) = sample.read_slabs()
        plain_map, *others = slab.candidates
        ranked = self.ranking.look_at(
            plain_map, slab.target, self._spacing(sample), slab.valid, others=others
        )
        return ranked, pair_regions_by(slab, self.config.tau, ranked.find_effects)

    def _find_used(self, pair: RegionPair, slab: Slab) -> Mask:
        """Voxels that are learnt from."""
        is_used: Mask = pair.weight > 0
        return is_used & (pair.chosen == slab.target) if self.config.agree else is_used

    def _count_used(self, sample: TrainingSample, pairs: RegionPairs) -> NDArray[np.int64]:
        """Voxels of each part that are learnt from, by its number in the sample."""
        sizes = np.zeros(1, np.int64)
        for number, slab in enumerate(sample.read_slabs()):
            pair = pairs.put_together(number, slab)
            more = np.bincount(pair.part[self._find_used(pair, slab)], minlength=len(sizes))
            more[: len(sizes)] += sizes
            sizes = more
        return sizes


def _read_slab(candidates: Volume, segmentation: Volume, labels: Labels, place: Index) -> Slab:
    truth = torch.from_numpy(np.asarray(segmentation[place]))
    valid = None if labels.ignore_label is None else ~labels.is_ignored(truth).numpy()
    label_maps = np.asarray(candidates[(slice(None), *place)])
    return Slab(label_maps, labels.target_map(truth).numpy(), valid)


def _write(preferences: Any, place: Index, *channels: NDArray[Any]) -> None:
    preferences[(slice(3), *place)] = np.stack(channels).astype(np.int16)


def _record(
    sample: TrainingSample, chosen: int, rejected: int | None, num_disagreeing: int
) -> SampleRecord:
    """Record of a sample without parts."""
    return SampleRecord(
        [round(value, 6) for value in sample.dice], chosen, rejected, num_disagreeing,
        sample.num_voxels, sample.has_foreground,
    )  # fmt: skip


def make_finder(config: MAPOConfig, labels: Labels, plan: Any) -> PairFinder:
    """Finder of pairs for a configuration `plan` of nnU-Net; the others as of `PairFinder`."""
    ranking = None
    if config.metric != "dice":  # Dice is counted for all parts at once
        ranking = Ranking.by(config.metric, config.tolerance_mm, labels)
    return PairFinder(labels, config, plan.patch_size, ranking, spacing_of(plan.spacing))


def spacing_of(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Spacing of a configuration with three axes; that of slices, which none of 2D has, is 1 mm."""
    return (*[1.0] * (3 - len(spacing_mm)), *map(float, spacing_mm))
