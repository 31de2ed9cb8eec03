"""Dice: the overlap of two masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nnunetv2_mapo.metrics.change import Change, Mask


class VoxelCounts(NamedTuple):
    """Voxels in both masks, and in the one plus in the other."""

    common: int
    total: int


class Overlap:
    """Voxels that two masks share; arguments as of `change.Measured`."""

    def __init__(self, prediction: Mask, target: Mask, spacing_mm: Sequence[float]) -> None:
        del spacing_mm  # all voxels weigh the same
        self._prediction, self._target = prediction, target
        self.counts = _count(prediction, target)

    def counts_with(self, change: Change) -> VoxelCounts:
        """Exact: a part changes the counts only within itself."""
        target = self._target[change.box]
        before, after = _count(self._prediction[change.box], target), _count(change.mask, target)
        return VoxelCounts(
            *(n - old + new for n, old, new in zip(self.counts, before, after, strict=True))
        )


def _count(prediction: Mask, target: Mask) -> VoxelCounts:
    total = int(prediction.sum()) + int(target.sum())
    return VoxelCounts(int((prediction & target).sum()), total)


def dice(counts: VoxelCounts) -> float:
    """2 |P & T| / (|P| + |T|) of masks of which one has a voxel."""
    return 2 * counts.common / counts.total
