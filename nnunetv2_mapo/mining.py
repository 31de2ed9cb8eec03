"""Mining: each training case -> candidates -> preference pair -> store."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from nnunetv2_mapo.dropout import StochasticDropout
from nnunetv2_mapo.labels import Labels
from nnunetv2_mapo.sampling import dropout_candidates
from nnunetv2_mapo.selection import candidate_dice, select_pair
from nnunetv2_mapo.store import Round, SampleRecord, StoreError, stack_preferences


class MinedCase(NamedTuple):
    """Preference pairs of a case.

    Attributes:
        chosen: Label map, shape `(*spatial)`, int16; 0 in samples without a pair.
        rejected: The same, equal to `chosen` where there is no pair or no annotation.
        records: One of each training sample: the case in 3D, each slice in 2D.
    """

    chosen: np.ndarray
    rejected: np.ndarray
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
        candidates = self.segment(image)
        segmentation = segmentation.to(self.device)
        if len(self.patch_size) == 3:  # one sample: give it the axis that 2D has for its slices
            candidates, segmentation = candidates[:, None], segmentation[None]
        chosen, rejected, records = zip(
            *(
                self._select(candidates[:, sample], segmentation[sample])
                for sample in range(len(segmentation))
            ),
            strict=True,
        )
        shape = image.shape[1:]
        return MinedCase(
            torch.stack(chosen).view(shape).short().cpu().numpy(),
            torch.stack(rejected).view(shape).short().cpu().numpy(),
            list(records),
        )

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
        places = list(window_places(padded.shape[1:], self.patch_size))
        for start in range(0, len(places), self.windows_per_forward):
            batch = places[start : start + self.windows_per_forward]
            windows = torch.stack([padded[(slice(None), *place)] for place in batch])
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                label_maps = dropout_candidates(
                    self.network, self.dropout, windows.to(self.device), rates, self.labels
                )
            for place, label_map in zip(batch, label_maps, strict=True):
                candidates[(slice(None), *place)] = label_map
        return candidates[(slice(None), *inside[1:])]

    def _select(
        self, candidates: Tensor, segmentation: Tensor
    ) -> tuple[Tensor, Tensor, SampleRecord]:
        """Chosen, rejected and record of one training sample."""
        ignored = self.labels.is_ignored(segmentation)
        valid = None if self.labels.ignore_label is None else ~ignored
        target = self.labels.target_map(segmentation)
        dice = candidate_dice(candidates, target, self.labels, valid).tolist()
        pair = select_pair(dice, self.tau)
        if pair.rejected is None:
            # Any two equal maps do; constant ones cost the augmentation nothing.
            chosen = rejected = torch.zeros_like(target)
        else:
            chosen = candidates[pair.chosen]
            rejected = torch.where(ignored, chosen, candidates[pair.rejected])
        record = SampleRecord(
            dice=[round(value, 6) for value in dice],
            chosen=pair.chosen,
            rejected=pair.rejected,
            num_disagreeing=int((chosen != rejected).sum()),
            num_voxels=target.numel(),
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


LoadCase = Callable[[str], tuple[Tensor, np.ndarray]]


def mine_round(
    miner: Miner, load_case: LoadCase, identifiers: Sequence[str], mined: Round, seed: int
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

    Returns:
        Summary of the whole round, the same on every rank.

    Raises:
        StoreError: A case that was just written cannot be read.
    """
    started = time.monotonic()
    is_shared = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_shared else (0, 1)
    finished = mined.find_finished(identifiers)
    missing = [identifier for identifier in identifiers if identifier not in finished]
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
            with seeded(f"{seed}/{mined.origin['round']}/{identifier}", miner.device):
                case = miner.mine(image, torch.from_numpy(segmentation[0]))
            stack = stack_preferences(segmentation, case.chosen, case.rejected)
            mined.write_case(identifier, stack, case.records, miner.patch_size)
            num_pairs += sum(record.rejected is not None for record in case.records)
            progress.set_postfix(pairs=num_pairs)
    if is_shared:
        dist.barrier()
    finished = mined.find_finished(identifiers)
    if lost := sorted(set(identifiers) - set(finished)):
        message = f"Cases were mined but cannot be read from {mined.folder}: {lost}. Is it full?"
        raise StoreError(message)
    if rank == 0:
        mined.write_manifest(finished)
    return summarize(finished, num_mined=len(missing), seconds=time.monotonic() - started)


@contextmanager
def seeded(seed: str, device: torch.device) -> Iterator[None]:
    """Seed torch from a text inside a `with` block; its random state is as before afterwards."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(number)
        yield


@dataclass(frozen=True)
class RoundSummary:
    """What a round of mining found, over all its training samples.

    Attributes:
        num_samples: Training samples (cases in 3D, slices in 2D).
        num_pairs: Those with a preference pair.
        dice_plain: Mean Dice of the prediction without dropout, over all samples.
        dice_chosen: Mean Dice of the chosen candidates of the pairs; NaN without pairs.
        dice_rejected: The same of the rejected ones.
        disagreement: Mean share of disagreement voxels of the pairs; NaN without pairs.
        gaps: Dice gap between best and worst candidate of each sample.
        num_mined: Cases that were mined now; the others were in the store.
        seconds: Duration of mining.
    """

    num_samples: int
    num_pairs: int
    dice_plain: float
    dice_chosen: float
    dice_rejected: float
    disagreement: float
    gaps: list[float]
    num_mined: int
    seconds: float

    def __str__(self) -> str:
        pairs = ""
        if self.num_pairs:
            pairs = (
                f", of the pairs chosen {self.dice_chosen:.4f}, rejected {self.dice_rejected:.4f}, "
                f"disagreement {self.disagreement:.2%} of the voxels"
            )
        return (
            f"{self.num_pairs} pairs / {self.num_samples} samples, Dice plain "
            f"{self.dice_plain:.4f}{pairs}; {self.num_mined} cases mined in {self.seconds:.1f} s"
        )


def summarize(
    cases: dict[str, list[SampleRecord]], *, num_mined: int, seconds: float
) -> RoundSummary:
    """Summarise a round from the records of every case."""
    samples = [record for records in cases.values() for record in records]
    pairs = [record for record in samples if record.rejected is not None]
    return RoundSummary(
        num_samples=len(samples),
        num_pairs=len(pairs),
        dice_plain=_mean([record.dice[0] for record in samples]),
        dice_chosen=_mean([record.dice[record.chosen] for record in pairs]),
        dice_rejected=_mean(
            [record.dice[record.rejected] for record in pairs if record.rejected is not None]
        ),
        disagreement=_mean([record.num_disagreeing / record.num_voxels for record in pairs]),
        gaps=[max(record.dice) - min(record.dice) for record in samples],
        num_mined=num_mined,
        seconds=seconds,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def explain_no_pairs(summary: RoundSummary, tau: float, rates: Sequence[float]) -> str:
    """Warning for a round without any pair: how far it was from one, and what to change."""
    largest, median = max(summary.gaps, default=0.0), float(np.median(summary.gaps or [0.0]))
    return (
        f"WARNING: this round has NO preference pair, so it trains with nnU-Net's own loss alone. "
        f"A pair needs a Dice gap of tau = {tau} between two candidates; the largest gap of any "
        f"sample is {largest:.4f}, the median {median:.4f} (dropout rates up to {max(rates)}, "
        f"plain Dice {summary.dice_plain:.4f}). To get pairs, derive a trainer whose MAPOConfig "
        f"has a smaller tau (half of the samples would have a pair at {median:.3f}) or higher "
        "rates (rates_2d, rates_3d), or a shorter warm-up."
    )
