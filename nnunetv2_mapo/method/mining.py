"""Mining: each training case -> candidates -> preference pair -> store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.ranking import Ranking
from nnunetv2_mapo.method.reference import bind_reference, measure_margins
from nnunetv2_mapo.method.region_pairs import even_out, pair_regions
from nnunetv2_mapo.method.sampling import CandidateSampler, fit_windows_per_forward
from nnunetv2_mapo.method.selection import candidate_dice, select_pair
from nnunetv2_mapo.method.store import WEIGHT_ONE, SampleRecord
from nnunetv2_mapo.method.windows import Index, find_units, find_windows, vote
from nnunetv2_mapo.support.device import seeded, within_memory

T = TypeVar("T")
# Network input `(channels, *spatial)` and segmentation `(1, *spatial)` of a case by its identifier.
LoadCase = Callable[[str], tuple[Tensor, NDArray[Any]]]
Log = Callable[[str], None]  # takes what a user should know


class TrainingSample(NamedTuple):
    """A part of a case with a preference pair of its own: the case, a slice or a window's cell."""

    place: Index  # of the sample in the case
    candidates: Tensor  # label maps, shape `(K, *spatial)`
    target: Tensor  # ground truth as a label map, shape `(*spatial)`
    ignored: Tensor  # mask of the voxels with the ignore label, same shape
    dice: list[float]  # of each candidate


class MinedCase(NamedTuple):
    """Preference pairs of a case: channels [chosen, rejected, weight], the margin behind them.

    They are those of `store.stack_preferences`, `(3 or 4, *spatial)`; 0 in samples without a pair.
    """

    preferences: NDArray[np.int16]
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
    # of the reference whose margins are cached, by name; None: it is the policy
    reference: Mapping[str, Tensor] | None = None

    def mine(self, image: Tensor, segmentation: Tensor) -> MinedCase:
        """Pairs of a case, whose network input has three spatial axes, `(channels, *spatial)`.

        The ground truth `(*spatial)` is in nnU-Net's labels, < 0 outside the image.
        """
        preferences = np.zeros((self.config.num_channels, *image.shape[1:]), np.int16)
        records = []
        is_parts = self.config.pair == "region"
        select = self._select_regions if is_parts else self._select_candidates
        for sample in self.find_samples(image, segmentation):
            preferences[(slice(3), *sample.place)], record = select(sample)
            records.append(record)
        if self.config.reference == "cached":
            preferences[3] = self._measure_margins(image, *torch.from_numpy(preferences[:2]))
        return MinedCase(preferences, records)

    def _measure_margins(
        self, image: Tensor, chosen: Tensor, rejected: Tensor
    ) -> NDArray[np.int16]:
        return measure_margins(
            bind_reference(self.network, self.reference), image, chosen, rejected, self.labels,
            self.patch_size, tile_step_size=self.config.tile_step_size,
            windows_per_forward=self.windows_per_forward * self.sampler.num_passes,
            device=self.device,
        )  # fmt: skip

    def find_samples(self, image: Tensor, segmentation: Tensor) -> Iterator[TrainingSample]:
        """Training samples of a case with their candidates, arguments as of `mine`."""
        candidates = self.segment(image)
        for place in self.find_units(segmentation.shape):
            truth, found = segmentation[place], candidates[(slice(None), *place)]
            ignored, target = self.labels.is_ignored(truth), self.labels.target_map(truth)
            valid = None if self.labels.ignore_label is None else ~ignored
            dice = candidate_dice(found, target, self.labels, valid)
            yield TrainingSample(place, found, target, ignored, dice.tolist())

    def find_units(self, shape: Sequence[int]) -> list[Index]:
        """Place of each training sample in a case of this shape."""
        unit = self.config.selection_unit(len(self.patch_size))
        return find_units(shape, self.patch_size, unit, self.config.tile_step_size)

    @torch.inference_mode()
    def segment(self, image: Tensor) -> Tensor:
        """Candidates `(K, *spatial)` of a case `(channels, *spatial)`, label maps on the CPU.

        Sliding windows vote where they overlap, weighed by nnU-Net's Gaussian, because a network
        is least sure at its patch's border. Logits are never accumulated.
        """
        padded, inside = pad_nd_image(
            image, self.patch_size, "constant", {"value": 0}, return_slicer=True
        )
        shape = (len(self.sampler.values), *padded.shape[1:])
        candidates = torch.zeros(shape, dtype=self.labels.dtype)  # a large case fills a GPU
        lead = torch.zeros(shape, dtype=torch.float16)
        weight = compute_gaussian(tuple(self.patch_size), dtype=lead.dtype, device=lead.device)
        windows = find_windows(padded.shape[1:], self.patch_size, self.config.tile_step_size)
        every = (slice(None),)  # channel, or candidate
        for start in range(0, len(windows), self.windows_per_forward):
            batch = windows[start : start + self.windows_per_forward]
            images = torch.stack([padded[every + window.place] for window in batch])
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                label_maps = self.sampler.segment(self.network, images.to(self.device), self.labels)
            for window, label_map in zip(batch, label_maps, strict=True):
                place = every + window.place
                vote(candidates[place], lead[place], label_map.cpu(), weight)
        return candidates[every + inside[1:]]

    def _select_candidates(self, sample: TrainingSample) -> tuple[NDArray[np.int16], SampleRecord]:
        """Channels of a sample whose pair is two candidates, see `MinedCase`, and its record."""
        scores = self._score(sample, sample.candidates)
        # every gap is stored where τ is only known when the round is complete
        tau = self.config.tau if self.config.tau_quantile is None else 0.0
        pair = select_pair(scores or sample.dice, tau, self.config.tau_max)
        if pair.rejected is None:
            # Any two equal maps do; constant ones cost the augmentation nothing.
            chosen = rejected = torch.zeros_like(sample.target)
        else:
            chosen = sample.candidates[pair.chosen]
            is_unused = sample.ignored
            if self.config.agree:
                is_unused = is_unused | (chosen != sample.target)
            rejected = torch.where(is_unused, chosen, sample.candidates[pair.rejected])
        num_disagreeing = int((chosen != rejected).sum())
        record = _record(sample, pair.chosen, pair.rejected, num_disagreeing)
        weight = WEIGHT_ONE * (chosen != rejected)
        channels = torch.stack((chosen, rejected, weight)).short()
        return channels.numpy(), replace(record, scores=scores)

    def _score(self, sample: TrainingSample, label_maps: Tensor) -> list[float] | None:
        """Value of label maps `(n, *spatial)` by the metric that ranks; None if that is Dice."""
        if self.ranking is None:
            return None
        others = (sample.target.numpy(), self._spacing(sample), ~sample.ignored.numpy())
        return [round(self.ranking.value(each.numpy(), *others), 6) for each in label_maps]

    def _spacing(self, sample: TrainingSample) -> tuple[float, ...]:
        """Distance of neighbouring voxels along the axes of a sample, in mm."""
        axes = zip(self.spacing_mm, sample.place, strict=True)
        return tuple(spacing for spacing, index in axes if isinstance(index, slice))

    def _select_regions(self, sample: TrainingSample) -> tuple[NDArray[np.int16], SampleRecord]:
        """Channels of a sample with a region pair, see `MinedCase`, and its record."""
        target, ignored = sample.target.numpy(), sample.ignored.numpy()
        candidates = sample.candidates.numpy()
        ranked = None
        if self.ranking is not None:
            ranked = self.ranking.look_at(
                candidates[0], target, self._spacing(sample), ~ignored, others=candidates[1:]
            )
        pair = pair_regions(
            candidates, target, self.labels, self.config.tau, ~ignored,
            effects_of=None if ranked is None else ranked.find_effects,
        )  # fmt: skip
        is_used = pair.weight > 0
        if self.config.agree:
            is_used &= pair.chosen == target
        weight = pair.weight
        if self.config.part_weight == "part":
            weight = even_out(weight, pair.part, is_used)
        weight = np.maximum(1, np.rint(weight * WEIGHT_ONE)) * is_used
        rejected = np.where(is_used, pair.rejected, pair.chosen)
        channels = np.stack((pair.chosen, rejected, weight)).astype(np.int16) * is_used.any()
        ends = torch.from_numpy(np.stack((pair.chosen, pair.rejected)))
        valid = None if self.labels.ignore_label is None else torch.from_numpy(~ignored)
        dice = candidate_dice(ends, torch.from_numpy(target), self.labels, valid).tolist()
        scores = None if ranked is None else [round(ranked.value, 6)]
        record = replace(
            _record(sample, 0, None, int(is_used.sum())),
            num_parts=pair.num_parts,
            num_preferred=pair.num_preferred,
            pair_dice=[round(value, 6) for value in dice],
            scores=scores and [*scores, *(self._score(sample, ends) or ())],
        )
        return channels, record


def _record(
    sample: TrainingSample, chosen: int, rejected: int | None, num_disagreeing: int
) -> SampleRecord:
    """Record of a sample without parts."""
    dice = [round(value, 6) for value in sample.dice]
    num_voxels, has_foreground = sample.target.numel(), bool(sample.target.any())
    return SampleRecord(dice, chosen, rejected, num_disagreeing, num_voxels, has_foreground)


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
