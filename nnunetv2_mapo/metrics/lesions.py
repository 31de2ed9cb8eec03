"""Lesion-wise metrics: of connected components instead of voxels.

A lesion is a connected component, neighbours at edges and corners too (26 in 3D, 8 in 2D). A lesion
of the truth is found if a voxel of the prediction is in it; one of the prediction is false if no
voxel of it is in the truth. That is how ISLES'22 counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunetv2_mapo.metrics.change import Box, Change, Mask, crop, grow

ML_PER_MM3 = 1e-3


class LesionCounts(NamedTuple):
    """Voxels of each lesion, and of each lesion of the prediction in each one of the truth."""

    predicted: NDArray[np.int64]  # voxels of each lesion of the prediction, `(P,)`
    target: NDArray[np.int64]  # the same of the truth, `(T,)`
    # each pair that shares voxels: number in the prediction, in the truth, voxels; `(N, 3)`
    shared: NDArray[np.int64]
    voxel_ml: float  # volume of a voxel; in 2D of 1 mm thickness

    @property
    def is_false(self) -> NDArray[np.bool_]:
        """Lesions of the prediction without a voxel in the truth, `(P,)`."""
        return ~np.isin(np.arange(len(self.predicted)), self.shared[:, 0])

    @property
    def is_missed(self) -> NDArray[np.bool_]:
        """Lesions of the truth without a voxel in the prediction, `(T,)`."""
        return ~np.isin(np.arange(len(self.target)), self.shared[:, 1])


class Lesions:
    """Connected components of two masks; arguments as of `change.Measured`."""

    def __init__(self, prediction: Mask, target: Mask, spacing_mm: Sequence[float]) -> None:
        self._prediction = prediction
        self._predicted, self._target = find_components(prediction), find_components(target)
        self._boxes: list[Box] = find_objects(self._predicted.astype(np.int32))
        sizes = np.bincount(self._target.ravel(), minlength=1)[1:]
        voxel_ml = math.prod(spacing_mm) * ML_PER_MM3
        self.counts = _count(self._predicted, self._target, sizes, voxel_ml)

    def counts_with(self, change: Change) -> LesionCounts:
        """Exact: lesions that the part does not touch stay what they are."""
        around = grow(change.box, self._prediction.shape, 1)
        touched = np.unique(self._predicted[around])
        touched = touched[touched > 0]
        box = _enclose([around, *(self._boxes[number - 1] for number in touched)])
        _, mask = crop(self._prediction, change, box)
        lesions = self._predicted[box]
        stays = (lesions > 0) & ~np.isin(lesions, touched)  # others that lie in the box
        _, old_target, shared, voxel_ml = old = self.counts
        new = _count(find_components(mask & ~stays), self._target[box], old_target, voxel_ml)
        kept = np.ones(len(old.predicted), bool)
        kept[touched - 1] = False
        number = np.cumsum(kept) - 1  # of each lesion that stays, among these
        shared = shared[kept[shared[:, 0]]]
        shared = np.column_stack((number[shared[:, 0]], shared[:, 1:]))
        return LesionCounts(
            np.concatenate((old.predicted[kept], new.predicted)),
            old_target,
            np.concatenate((shared, new.shared + np.array([kept.sum(), 0, 0]))),
            voxel_ml,
        )


def count_lesions(prediction: Mask, target: Mask, spacing_mm: Sequence[float]) -> LesionCounts:
    """Lesions of two masks of two or three axes; the spacing is that of these axes."""
    return Lesions(prediction, target, spacing_mm).counts


def find_components(mask: Mask) -> NDArray[np.integer]:
    """Number of the component of each voxel, from 1; 0 outside the mask.

    Neighbours are those at edges and corners, too.
    """
    voxels = mask.astype(np.uint8)  # of booleans, cc3d 4.1.1 numbers voxels in 2D that are False
    if mask.ndim == 2:
        return cc3d.connected_components(voxels, connectivity=8)
    return cc3d.connected_components(voxels, connectivity=26)


def _enclose(boxes: Sequence[Box]) -> Box:
    """Smallest box that holds all of these."""
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)


def _count(
    predicted: NDArray[np.integer],
    target: NDArray[np.integer],
    target_sizes: NDArray[np.int64],
    voxel_ml: float,
) -> LesionCounts:
    """Counts of two maps of lesions; the sizes of the truth's are known."""
    sizes = np.bincount(predicted.ravel(), minlength=1)[1:]
    both = (predicted > 0) & (target > 0)
    numbers = np.column_stack((predicted[both], target[both])).astype(np.int64) - 1
    pairs, voxels = np.unique(numbers, axis=0, return_counts=True)
    return LesionCounts(sizes, target_sizes, np.column_stack((pairs, voxels)), voxel_ml)


# Metrics: `counts` holds at least one lesion ------------------------------------------------------


def lesion_precision(counts: LesionCounts) -> float:
    """Found lesions / (found + false ones); NaN without either."""
    num_found, num_false = int((~counts.is_missed).sum()), int(counts.is_false.sum())
    return num_found / (num_found + num_false) if num_found + num_false else math.nan


def lesion_recall(counts: LesionCounts) -> float:
    """Share of the truth's lesions that are found; NaN if it has none."""
    return float((~counts.is_missed).mean()) if len(counts.target) else math.nan


def lesion_f1(counts: LesionCounts) -> float:
    """Found / (found + half of the missed and false lesions), as ISLES'22."""
    num_wrong = int(counts.is_missed.sum()) + int(counts.is_false.sum())
    num_found = len(counts.target) - int(counts.is_missed.sum())
    return num_found / (num_found + num_wrong / 2)


def lesion_dice(counts: LesionCounts) -> float:
    """Mean Dice of the lesions of the truth and of the false ones, which have 0, as in BraTS 2023.

    A lesion of the truth is compared with all lesions of the prediction that share a voxel with it.
    """
    predicted, target, voxels = counts.shared.T
    size = len(counts.target)
    common = np.bincount(target, voxels, size)
    total = counts.target + np.bincount(target, counts.predicted[predicted], size)
    return float((2 * common / total).sum() / (size + counts.is_false.sum()))


def false_positive_volume_ml(counts: LesionCounts) -> float:
    """Volume of the false lesions of the prediction, as in autoPET."""
    return float(counts.predicted[counts.is_false].sum() * counts.voxel_ml)


def false_negative_volume_ml(counts: LesionCounts) -> float:
    """Volume of the missed lesions of the truth, as in autoPET."""
    return float(counts.target[counts.is_missed].sum() * counts.voxel_ml)
