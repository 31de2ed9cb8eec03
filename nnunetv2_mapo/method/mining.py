"""Mining: each training case -> candidates -> preference pair -> store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.parts import Mask, Slab
from nnunetv2_mapo.method.ranking import RankedSample, Ranking
from nnunetv2_mapo.method.reference import bind_reference, measure_margins
from nnunetv2_mapo.method.region_pairs import (
    RegionPair,
    RegionPairs,
    even_out,
    pair_regions,
    pair_regions_by,
)
from nnunetv2_mapo.method.sampling import CandidateSampler, fit_windows_per_forward
from nnunetv2_mapo.method.selection import Overlap, count_candidates, mean_dice, select_pair
from nnunetv2_mapo.method.store import WEIGHT_ONE, SampleRecord
from nnunetv2_mapo.method.volumes import Volume, make_compressed
from nnunetv2_mapo.method.windows import (
    Index,
    Padded,
    RollingVotes,
    Window,
    find_units,
    find_windows,
    read_window,
    split_planes,
)
from nnunetv2_mapo.support.device import seeded, within_memory
from nnunetv2_mapo.support.threads import read_ahead

T = TypeVar("T")
# Network input `(channels, *spatial)` and segmentation `(1, *spatial)` of a case by its identifier.
LoadCase = Callable[[str], tuple[Volume, Volume]]
Log = Callable[[str], None]  # takes what a user should know
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
class Miner:
    """Finds the preference pairs of a case with the current policy."""

    network: nn.Module  # the policy, not compiled, in evaluation mode
    sampler: CandidateSampler  # makes its candidates
    labels: Labels  # meaning of its heads
    config: MAPOConfig
    patch_size: Sequence[int]  # of the configuration in voxels, 2 or 3 entries
    windows_per_forward: int  # windows in one forward pass, each with all its candidates
    device: torch.device  # where the network lies
    ranking: Ranking | None = None  # by what candidates and parts are ranked; None: by their Dice
    # distance of neighbouring voxels along the three axes; in 2D the first is that of slices
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    # weights of the reference whose margins are cached, by name; None: those of the network
    reference: Mapping[str, Tensor] | None = None

    def mine(self, image: Volume, segmentation: Volume) -> MinedCase:
        """Pairs of a case, whose network input has three spatial axes, `(channels, *spatial)`.

        The ground truth `(*spatial)` is in nnU-Net's labels, < 0 outside the image.
        """
        mined = self.find_pairs(self.find_candidates(image), segmentation)
        if self.config.reference == "cached":
            self.add_margins(image, mined)
        return mined

    @torch.inference_mode()
    def find_candidates(self, image: Volume) -> Volume:
        """Candidates `(K, *spatial)` of a case `(channels, *spatial)`, label maps, compressed.

        Sliding windows vote where they overlap, weighed by nnU-Net's Gaussian, because a network
        is least sure at its patch's border. Logits are never accumulated, and votes only of the
        planes that further windows reach.
        """
        num_candidates = len(self.sampler.values)
        dtype = self.labels.dtype
        found = make_compressed(
            (num_candidates, *image.shape[1:]), str(dtype).removeprefix("torch.")
        )
        padded = Padded.around(image.shape[1:], self.patch_size)
        weight = compute_gaussian(
            tuple(self.patch_size), dtype=torch.float16, device=torch.device("cpu")
        )
        num_planes = self.patch_size[0] if len(self.patch_size) == 3 else 1
        votes = RollingVotes((num_candidates, num_planes, *padded.shape[1:]), dtype, weight)
        windows = find_windows(padded.shape, self.patch_size, self.config.tile_step_size)
        for batch, images in self.read_batches(image, windows):
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                label_maps = self.sampler.segment(self.network, images, self.labels)
            for window, label_map in zip(batch, label_maps.cpu(), strict=True):
                _store_planes(found, votes, padded, until=window.first_plane)
                votes.vote(window.place, label_map)
        _store_planes(found, votes, padded, until=padded.shape[0])
        candidates: Volume = found
        return candidates

    def read_batches(
        self, image: Volume, windows: Sequence[Window]
    ) -> Iterator[tuple[Sequence[Window], Tensor]]:
        """Windows of a case in batches of `windows_per_forward`, with their images on the device.

        Arguments as of `find_candidates` and `find_windows`. The next batch is read while one is
        in use.
        """
        front = Padded.around(image.shape[1:], self.patch_size).front
        starts = range(0, len(windows), self.windows_per_forward)
        batches = (windows[start : start + self.windows_per_forward] for start in starts)
        read = ((b, torch.stack([read_window(image, w.place, front) for w in b])) for b in batches)
        for batch, images in read_ahead(read):
            yield batch, images.to(self.device, non_blocking=True)

    def find_pairs(self, candidates: Volume, segmentation: Volume) -> MinedCase:
        """Pairs of a case by its candidates `(K, *spatial)`; the network has nothing to do.

        The ground truth is as of `mine`; `add_margins` comes next.
        """
        shape = (self.config.num_channels, *segmentation.shape)
        preferences = make_compressed(shape, np.int16)
        has_parts = self.config.pair == "region"
        select = self._select_regions if has_parts else self._select_candidates
        samples = self.find_samples(candidates, segmentation)
        return MinedCase(preferences, [select(sample, preferences) for sample in samples])

    def add_margins(self, image: Volume, mined: MinedCase) -> None:
        """Write the margins of a cached reference behind the other channels of a case's pairs.

        Only windows with a disagreement voxel are computed. Where windows overlap, the one with
        the nearest centre counts. The image is as of `find_candidates`.
        """
        preferences, reference = mined.preferences, bind_reference(self.network, self.reference)
        padded = Padded.around(image.shape[1:], self.patch_size)
        windows = find_windows(padded.shape, self.patch_size, self.config.tile_step_size)
        windows = [each for each in windows if _has_pair(preferences, padded.clip(each.cell))]
        num_windows = self.windows_per_forward * self.sampler.num_passes
        reader = replace(self, windows_per_forward=num_windows)
        planes = _MarginPlanes(preferences)
        for batch, images in reader.read_batches(image, windows):
            pairs = [read_window(preferences, each.place, padded.front) for each in batch]
            chosen, rejected, *_ = torch.stack(pairs, 1).to(self.device)
            margins = measure_margins(reference, images, chosen, rejected, self.labels)
            for window, found in zip(batch, margins.cpu().numpy(), strict=True):
                cell = padded.clip(window.cell)
                planes.write(cell, found[padded.inside(cell, window)])
        planes.close()

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


class _MarginPlanes:
    """Planes of the margins, which are compressed when all cells in them are written."""

    def __init__(self, preferences: Any) -> None:
        self._preferences = preferences
        self._planes: int | slice | None = None
        self._margins = np.zeros((), np.int16)

    def write(self, cell: Index, margins: NDArray[np.int16]) -> None:
        """Write a cell; those of the same planes come one after another."""
        planes, *others = cell
        if planes != self._planes:
            self.close()
            self._planes, self._margins = planes, np.array(self._preferences[3, planes])
        self._margins[(..., *others)] = margins

    def close(self) -> None:
        """Compress what was written."""
        if self._planes is not None:
            self._preferences[3, self._planes] = self._margins


def _store_planes(found: Any, votes: RollingVotes, padded: Padded, *, until: int) -> None:
    """Keep the planes that no further window reaches, without the voxels around the case."""
    if until == votes.first:
        return
    first, last = (
        min(max(plane - padded.front[0], 0), found.shape[1]) for plane in (votes.first, until)
    )
    start = first + padded.front[0] - votes.first  # of the case in what is done
    rows, columns = (
        slice(before, before + size)
        for before, size in zip(padded.front[1:], found.shape[2:], strict=True)
    )
    done = votes.before(until)[:, start : start + last - first, rows, columns]
    if first < last:
        for number, label_map in enumerate(done):
            found[number, first:last] = label_map.contiguous().numpy()
    votes.move_to(until)


def _read_slab(candidates: Volume, segmentation: Volume, labels: Labels, place: Index) -> Slab:
    truth = torch.from_numpy(np.asarray(segmentation[place]))
    valid = None if labels.ignore_label is None else ~labels.is_ignored(truth).numpy()
    label_maps = np.asarray(candidates[(slice(None), *place)])
    return Slab(label_maps, labels.target_map(truth).numpy(), valid)


def _write(preferences: Any, place: Index, *channels: NDArray[Any]) -> None:
    preferences[(slice(3), *place)] = np.stack(channels).astype(np.int16)


def _has_pair(preferences: Volume, place: Index) -> bool:
    chosen, rejected = (np.asarray(preferences[(channel, *place)]) for channel in range(2))
    return not np.array_equal(chosen, rejected)


def _record(
    sample: TrainingSample, chosen: int, rejected: int | None, num_disagreeing: int
) -> SampleRecord:
    """Record of a sample without parts."""
    return SampleRecord(
        [round(value, 6) for value in sample.dice], chosen, rejected, num_disagreeing,
        sample.num_voxels, sample.has_foreground,
    )  # fmt: skip


def make_miner(
    config: MAPOConfig,
    network: nn.Module,
    sampler: CandidateSampler,
    labels: Labels,
    plan: Any,
    device: torch.device,
) -> Miner:
    """Miner for a configuration `plan` of nnU-Net; the other arguments as of `Miner`."""
    # nnU-Net's global batch size: the pairs must not depend on the number of ranks
    num_windows = fit_windows_per_forward(sampler.num_passes, plan.batch_size)
    ranking = None
    if config.metric != "dice":  # Dice is counted for all parts at once
        ranking = Ranking.by(config.metric, config.tolerance_mm, labels)
    return Miner(
        network, sampler, labels, config, plan.patch_size, num_windows, device,
        ranking, spacing_of(plan.spacing),
    )  # fmt: skip


def spacing_of(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Spacing of a configuration with three axes; that of slices, which none of 2D has, is 1 mm."""
    return (*[1.0] * (3 - len(spacing_mm)), *map(float, spacing_mm))


def mine_within_memory(
    miner: Miner, work: Callable[[Miner], T], seed: str, log: Log
) -> tuple[Miner, T]:
    """Do work with a miner, with half as many windows in a forward pass whenever memory runs out.

    The seed and that number decide the candidates. It returns the miner for the work to come, too.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
    """

    def work_with(num_windows: int) -> T:
        with seeded(seed, miner.device):
            return work(replace(miner, windows_per_forward=num_windows))

    num_passes = miner.sampler.num_passes
    advice = (
        f"Mining runs out of memory on {miner.device} even with a single window of "
        f"{tuple(miner.patch_size)} voxels, {num_passes} times in a forward pass. The "
        "cases mined before are kept: free memory there and go on with --c"
    )
    num_windows, result = within_memory(
        work_with, miner.windows_per_forward, miner.device,
        advice=advice + (", or start anew with fewer candidates." if num_passes > 1 else "."),
        log=lambda text: log(f"mining {text}"),
    )  # fmt: skip
    return replace(miner, windows_per_forward=num_windows), result
