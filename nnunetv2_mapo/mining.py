"""Mining: each training case -> candidates -> preference pair -> store."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.utilities.helpers import empty_cache
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from nnunetv2_mapo.dropout import StochasticDropout
from nnunetv2_mapo.labels import Labels
from nnunetv2_mapo.randomness import seeded
from nnunetv2_mapo.sampling import dropout_candidates
from nnunetv2_mapo.selection import candidate_dice, select_pair
from nnunetv2_mapo.store import Round, SampleRecord, StoreError, stack_preferences
from nnunetv2_mapo.summary import RoundSummary, summarize


class OutOfMemoryError(RuntimeError):
    """Not even a single window fits into memory; the message says what to do."""


class Sample(NamedTuple):
    """One training sample (the case in 3D, a slice in 2D) with its candidates.

    Attributes:
        candidates: Label maps, shape `(K, *spatial)`.
        target: Ground truth as a label map, shape `(*spatial)`.
        ignored: Mask of the voxels with the ignore label, same shape.
        dice: Dice of each candidate.
    """

    candidates: Tensor
    target: Tensor
    ignored: Tensor
    dice: list[float]


class MinedCase(NamedTuple):
    """Preference pairs of a case.

    Attributes:
        chosen: Label map, shape `(*spatial)`, int16; 0 in samples without a pair.
        rejected: The same, equal to `chosen` where there is no pair or no annotation.
        records: One of each training sample: the case in 3D, each slice in 2D.
    """

    chosen: NDArray[np.int16]
    rejected: NDArray[np.int16]
    records: list[SampleRecord]


@dataclass(frozen=True)
class Miner:
    """Finds the preference pairs of a case with the current policy.

    Attributes:
        network: The policy, not compiled, in evaluation mode.
        dropout: Its dropout.
        labels: Meaning of its heads.
        rates: Dropout rate of each candidate.
        tau: Least Dice gap of a pair.
        patch_size: Patch of the configuration in voxels, 2 or 3 entries.
        windows_per_forward: Windows in one forward pass, each with all its candidates.
        device: Where the network lies.
    """

    network: nn.Module
    dropout: StochasticDropout
    labels: Labels
    rates: Sequence[float]
    tau: float
    patch_size: Sequence[int]
    windows_per_forward: int
    device: torch.device

    def mine(self, image: Tensor, segmentation: Tensor) -> MinedCase:
        """Mine one case.

        Args:
            image: Network input of the whole case, shape `(channels, *spatial)` with three
                spatial axes, float32.
            segmentation: Ground truth in nnU-Net's labels, shape `(*spatial)`, < 0 outside the
                image.

        Returns:
            Its pairs.
        """
        samples = self.find_samples(image, segmentation)
        chosen, rejected, records = zip(*map(self._select, samples), strict=True)
        shape = image.shape[1:]
        return MinedCase(
            torch.stack(chosen).view(shape).short().cpu().numpy(),
            torch.stack(rejected).view(shape).short().cpu().numpy(),
            list(records),
        )

    def find_samples(self, image: Tensor, segmentation: Tensor) -> Iterator[Sample]:
        """Training samples of a case with their candidates, arguments as of `mine`."""
        candidates = self.segment(image)
        segmentation = segmentation.to(self.device)
        if len(self.patch_size) == 3:  # one sample: give it the axis that 2D has for its slices
            candidates, segmentation = candidates[:, None], segmentation[None]
        for number, truth in enumerate(segmentation):
            ignored, target = self.labels.is_ignored(truth), self.labels.target_map(truth)
            valid = None if self.labels.ignore_label is None else ~ignored
            dice = candidate_dice(candidates[:, number], target, self.labels, valid)
            yield Sample(candidates[:, number], target, ignored, dice.tolist())

    @torch.inference_mode()
    def segment(self, image: Tensor) -> Tensor:
        """Candidates of a case from sliding windows that overlap only where they must.

        Each window's label map goes straight into the result: logits are never accumulated.

        Args:
            image: Shape `(channels, *spatial)`.

        Returns:
            Label maps, shape `(K, *spatial)`.
        """
        padded, inside = pad_nd_image(
            image, self.patch_size, "constant", {"value": 0}, return_slicer=True
        )
        rates = torch.tensor(self.rates, device=self.device)
        candidates = torch.empty(
            (len(rates), *padded.shape[1:]), dtype=self.labels.dtype, device=self.device
        )
        places = [(slice(None), *p) for p in window_places(padded.shape[1:], self.patch_size)]
        for start in range(0, len(places), self.windows_per_forward):
            batch = places[start : start + self.windows_per_forward]
            windows = torch.stack([padded[place] for place in batch])
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                label_maps = dropout_candidates(
                    self.network, self.dropout, windows.to(self.device), rates, self.labels
                )
            for place, label_map in zip(batch, label_maps, strict=True):
                candidates[place] = label_map
        inside = (slice(None), *inside[1:])  # all candidates, not the image's channels
        return candidates[inside]

    def _select(self, sample: Sample) -> tuple[Tensor, Tensor, SampleRecord]:
        """Chosen, rejected and record of one training sample."""
        pair = select_pair(sample.dice, self.tau)
        if pair.rejected is None:
            # Any two equal maps do; constant ones cost the augmentation nothing.
            chosen = rejected = torch.zeros_like(sample.target)
        else:
            chosen = sample.candidates[pair.chosen]
            rejected = torch.where(sample.ignored, chosen, sample.candidates[pair.rejected])
        record = SampleRecord(
            dice=[round(value, 6) for value in sample.dice],
            chosen=pair.chosen,
            rejected=pair.rejected,
            num_disagreeing=int((chosen != rejected).sum()),
            num_voxels=sample.target.numel(),
        )
        return chosen, rejected, record


def window_places(shape: Sequence[int], patch_size: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Index of each window of a case: as few as cover it.

    Args:
        shape: Three spatial axes, at least as large as the patch.
        patch_size: In voxels; with two entries the windows lie in single slices.

    Yields:
        Index for the three spatial axes; in 2D its first entry is the slice.
    """
    in_plane = shape[-len(patch_size) :]
    steps = compute_steps_for_sliding_window(tuple(in_plane), patch_size, 1.0)
    windows = [
        tuple(slice(low, low + size) for low, size in zip(corner, patch_size, strict=True))
        for corner in itertools.product(*steps)
    ]
    if len(patch_size) == 3:
        yield from windows
    else:
        yield from ((plane, *window) for plane in range(shape[0]) for window in windows)


T = TypeVar("T")
LoadCase = Callable[[str], tuple[Tensor, NDArray[Any]]]


def mine_round(
    miner: Miner,
    load_case: LoadCase,
    identifiers: Sequence[str],
    mined: Round,
    seed: int,
    log: Callable[[str], None],
) -> RoundSummary:
    """Mine the cases of a round that are not in its store yet, shared among all ranks.

    Args:
        miner: What mines one case.
        load_case: Gives a case's network input, shape `(channels, *spatial)`, and its
            segmentation, shape `(1, *spatial)`.
        identifiers: Every training case.
        mined: The round; each case is stored as soon as it is done, the manifest last.
        seed: With the round's number and the case's name it decides the candidates, so they do
            not depend on the order of the cases, the number of ranks or an interruption.
        log: Takes what a user should know.

    Returns:
        Summary of the whole round, the same on every rank.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
        StoreError: A case that was just written cannot be read.
        WriteError: The disk is full.
    """
    started = time.monotonic()
    is_shared = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_shared else (0, 1)
    finished, damaged = mined.find_finished(identifiers)
    missing = [identifier for identifier in identifiers if identifier not in finished]
    if damaged:
        log(f"WARNING: files of {damaged} in {mined.folder} are damaged; they are mined again")
    if missing and finished:
        log(f"{len(finished)} of {len(identifiers)} cases are in {mined.folder} already")
    if is_shared:
        dist.barrier()  # every rank has looked before the first case changes
    if missing and rank == 0:
        mined.forget_manifest()
    num_pairs = 0
    with tqdm(missing[rank::world_size], desc="mining", unit="case", disable=rank > 0) as progress:
        for number, identifier in enumerate(progress):
            if is_shared and number % 20 == 0 and number < len(missing) // world_size:
                dist.barrier()  # often enough for no rank to wait until the backend's time is up
            image, segmentation = load_case(identifier)
            truth = torch.from_numpy(segmentation[0])
            miner, case = within_memory(
                miner, partial(Miner.mine, image=image, segmentation=truth),
                f"{seed}/{mined.origin['round']}/{identifier}", log,
            )  # fmt: skip
            stack = stack_preferences(segmentation, case.chosen, case.rejected)
            mined.write_case(identifier, stack, case.records, miner.patch_size)
            num_pairs += sum(record.rejected is not None for record in case.records)
            progress.set_postfix(pairs=num_pairs)
    if is_shared:
        dist.barrier()
    records = mined.find_finished(identifiers).records
    if lost := sorted(set(identifiers) - set(records)):
        message = f"Cases were mined but cannot be read from {mined.folder}: {lost}."
        raise StoreError(message)
    if rank == 0:
        mined.write_manifest(records)
    return summarize(records, num_mined=len(missing), seconds=time.monotonic() - started)


def within_memory(
    miner: Miner, work: Callable[[Miner], T], seed: str, log: Callable[[str], None]
) -> tuple[Miner, T]:
    """Do seeded work, with half as many windows in a forward pass whenever memory runs out.

    Args:
        miner: What does it.
        work: What to do with it.
        seed: With the number of windows it decides the candidates.
        log: Takes what a user should know.

    Returns:
        The miner for the work to come, and the result.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
    """
    while True:
        try:
            with seeded(seed, miner.device):
                return miner, work(miner)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if miner.windows_per_forward == 1:
                message = (
                    f"Mining runs out of memory on {miner.device} even with a single window of "
                    f"{tuple(miner.patch_size)} voxels and its {len(miner.rates)} candidates in a "
                    "forward pass. The cases mined before are kept: free memory there and go on "
                    "with --c, or start anew with fewer rates (rates_2d, rates_3d)."
                )
                raise OutOfMemoryError(message) from error
        # Not in the except clause, whose traceback holds what is to be freed.
        miner = replace(miner, windows_per_forward=miner.windows_per_forward // 2)
        empty_cache(miner.device)
        log(f"mining ran out of memory: {miner.windows_per_forward} windows a forward pass now")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
