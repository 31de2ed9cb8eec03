"""Mining: a training case -> candidates -> pairs -> margins of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.pairing import MinedCase, PairFinder, make_finder
from nnunetv2_mapo.method.reference import bind_reference, measure_margins
from nnunetv2_mapo.method.sampling import CandidateSampler
from nnunetv2_mapo.method.volumes import Volume, make_compressed
from nnunetv2_mapo.method.windows import (
    Index,
    Padded,
    RollingVotes,
    Window,
    find_windows,
    read_window,
)
from nnunetv2_mapo.support.device import seeded, within_memory
from nnunetv2_mapo.support.threads import read_ahead

T = TypeVar("T")
# Network input `(channels, *spatial)` and segmentation `(1, *spatial)` of a case by its identifier.
LoadCase = Callable[[str], tuple[Volume, Volume]]
Log = Callable[[str], None]  # takes what a user should know


@dataclass(frozen=True)
class Miner:
    """Finds the preference pairs of a case with the current policy."""

    network: nn.Module  # the policy, not compiled, in evaluation mode
    sampler: CandidateSampler  # makes its candidates
    finder: PairFinder  # finds the pairs among these
    images_per_forward: int  # windows times candidates in one forward pass
    device: torch.device  # where the network lies
    # weights of the reference whose margins are cached, by name; None: those of the network
    reference: Mapping[str, Tensor] | None = None

    @property
    def labels(self) -> Labels:
        """Meaning of the network's heads."""
        return self.finder.labels

    @property
    def config(self) -> MAPOConfig:
        """Settings."""
        return self.finder.config

    @property
    def patch_size(self) -> Sequence[int]:
        """Of the configuration in voxels, 2 or 3 entries."""
        return self.finder.patch_size

    def mine(self, image: Volume, segmentation: Volume) -> MinedCase:
        """Pairs of a case, whose network input has three spatial axes, `(channels, *spatial)`.

        The ground truth `(*spatial)` is in nnU-Net's labels, < 0 outside the image.
        """
        mined = self.finder.find_pairs(self.find_candidates(image), segmentation)
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
        num_windows = max(1, self.images_per_forward // self.sampler.num_passes)
        for batch, images in self.read_batches(image, windows, num_windows):
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                label_maps = self.sampler.segment(
                    self.network, images, self.labels, self.images_per_forward
                )
            for window, label_map in zip(batch, label_maps.cpu(), strict=True):
                _store_planes(found, votes, padded, until=window.first_plane)
                votes.vote(window.place, label_map)
        _store_planes(found, votes, padded, until=padded.shape[0])
        candidates: Volume = found
        return candidates

    def read_batches(
        self, image: Volume, windows: Sequence[Window], size: int
    ) -> Iterator[tuple[Sequence[Window], Tensor]]:
        """Windows of a case in batches of a size, with their images on the device.

        Arguments as of `find_candidates` and `find_windows`. The next batch is read while one is
        in use.
        """
        front = Padded.around(image.shape[1:], self.patch_size).front
        batches = (windows[start : start + size] for start in range(0, len(windows), size))
        read = ((b, torch.stack([read_window(image, w.place, front) for w in b])) for b in batches)
        for batch, images in read_ahead(read):
            yield batch, images.to(self.device, non_blocking=True)

    def add_margins(self, image: Volume, mined: MinedCase) -> None:
        """Write the margins of a cached reference behind the other channels of a case's pairs.

        Only windows with a disagreement voxel are computed. Where windows overlap, the one with
        the nearest centre counts. The image is as of `find_candidates`.
        """
        preferences, reference = mined.preferences, bind_reference(self.network, self.reference)
        padded = Padded.around(image.shape[1:], self.patch_size)
        windows = find_windows(padded.shape, self.patch_size, self.config.tile_step_size)
        windows = [each for each in windows if _has_pair(preferences, padded.clip(each.cell))]
        planes = _MarginPlanes(preferences)
        for batch, images in self.read_batches(image, windows, self.images_per_forward):
            pairs = [read_window(preferences, each.place, padded.front) for each in batch]
            chosen, rejected, *_ = torch.stack(pairs, 1).to(self.device)
            margins = measure_margins(reference, images, chosen, rejected, self.labels)
            for window, found in zip(batch, margins.cpu().numpy(), strict=True):
                cell = padded.clip(window.cell)
                planes.write(cell, found[padded.inside(cell, window)])
        planes.close()


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


def _has_pair(preferences: Volume, place: Index) -> bool:
    chosen, rejected = (np.asarray(preferences[(channel, *place)]) for channel in range(2))
    return not np.array_equal(chosen, rejected)


def make_miner(
    config: MAPOConfig,
    network: nn.Module,
    sampler: CandidateSampler,
    labels: Labels,
    plan: Any,
    device: torch.device,
) -> Miner:
    """Miner for a configuration `plan` of nnU-Net; the other arguments as of `Miner`."""
    # As many images as a training step has, for which there is memory (measured: memory.py). Those
    # of nnU-Net's global batch: the pairs must not depend on the number of ranks.
    num_images = plan.batch_size
    return Miner(network, sampler, make_finder(config, labels, plan), num_images, device)


def mine_within_memory(
    miner: Miner, work: Callable[[Miner], T], seed: str, log: Log
) -> tuple[Miner, T]:
    """Do work with a miner, with half as many images in a forward pass whenever memory runs out.

    The seed and that number decide the candidates. It returns the miner for the work to come, too.

    Raises:
        OutOfMemoryError: There is not enough memory for a single image.
    """

    def work_with(num_images: int) -> T:
        with seeded(seed, miner.device):
            return work(replace(miner, images_per_forward=num_images))

    num_images, result = within_memory(
        work_with, miner.images_per_forward, miner.device,
        advice=f"Mining runs out of memory on {miner.device} even with a single image of "
        f"{tuple(miner.patch_size)} voxels in a forward pass. The cases mined before are kept: "
        "free memory there and go on with --c.",
        log=lambda text: log(f"mining {text}"),
    )  # fmt: skip
    return replace(miner, images_per_forward=num_images), result
