"""Lesion-wise metrics: of connected components instead of voxels.

A lesion is a connected component, neighbours at edges and corners too (26 in 3D, 8 in 2D). A lesion
of the truth is found if a voxel of the prediction is in it; one of the prediction is false if no
voxel of it is in the truth. That is how ISLES'22 counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nnunetv2_mapo.metrics.change import Box, Change, Mask, crop, enclose, grow, inside
from nnunetv2_mapo.metrics.components import find_components

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
        is_false = np.ones(len(self.predicted), bool)
        is_false[self.shared[:, 0]] = False
        return is_false

    @property
    def is_missed(self) -> NDArray[np.bool_]:
        """Lesions of the truth without a voxel in the prediction, `(T,)`."""
        is_missed = np.ones(len(self.target), bool)
        is_missed[self.shared[:, 1]] = False
        return is_missed


class _Counted(NamedTuple):
    """`predicted` and `shared` of `LesionCounts`."""

    sizes: NDArray[np.int64]
    shared: NDArray[np.int64]


class Lesions:
    """Connected components of two masks; arguments as of `change.Measured`."""

    def __init__(self, prediction: Mask, target: Mask, spacing_mm: Sequence[float]) -> None:
        self._prediction = prediction
        self._predicted, self._target = find_components(prediction), find_components(target)
        self._boxes: list[Box] = find_objects(self._predicted)
        sizes = np.bincount(self._target.ravel(), minlength=1)[1:]
        voxel_ml = math.prod(spacing_mm) * ML_PER_MM3
        counted = _count(self._predicted, self._target)
        self.counts = LesionCounts(counted.sizes, sizes, counted.shared, voxel_ml)

    def counts_with(self, change: Change) -> LesionCounts:
        """Exact: lesions that the part does not touch stay what they are.

        Those that it touches are found anew in the box around them if it may split one; else they
        can but grow, shrink, merge and vanish, which the box around the part tells.
        """
        box = grow(change.box, self._prediction.shape, 1)
        before, after = crop(self._prediction, change, box)
        local = find_components(after)
        touched, old = np.unique(self._predicted[box].astype(np.int64), return_inverse=True)
        if touched[0]:
            touched, old = np.append(0, touched), old + 1  # no background in the box
        touched = touched[1:]
        if len(touched) == 1 and local.max() == 1:  # most parts move a border
            return self._resize(int(touched[0]) - 1, box, before, after)
        stays = before.copy()  # what has a neighbour in the part's box
        stays[inside(change.box, box)] = False
        pairs = np.unique(np.stack((find_components(before)[stays], local[stays])), axis=1)
        if len(np.unique(pairs[0])) == pairs.shape[1]:  # what was connected here still is
            new = self._follow(box, touched, old, local, stays)
        else:
            around = enclose([box, *(self._boxes[number - 1] for number in touched)])
            lesions = self._predicted[around]
            _, mask = crop(self._prediction, change, around)
            mask &= (lesions == 0) | np.isin(lesions, touched)
            new = _count(find_components(mask), self._target[around])
        return self._replace(touched - 1, *new)

    def _resize(self, number: int, box: Box, before: Mask, after: Mask) -> LesionCounts:
        """Counts with another border of one lesion in a box, in which it is and stays alone."""
        counts, is_new = self.counts, after & ~before
        sizes, shared = counts.predicted.copy(), counts.shared
        sizes[number] += int(after.sum()) - int(before.sum())
        there = self._target[box]
        size = len(counts.target) + 1
        gain = np.bincount(there[is_new], minlength=size) - np.bincount(
            there[before & ~after], minlength=size
        )
        if gain[1:].any():
            is_own = shared[:, 0] == number
            voxels = gain[1:]
            voxels[shared[is_own, 1]] += shared[is_own, 2]
            found = np.flatnonzero(voxels)
            own = np.column_stack((np.full(len(found), number), found, voxels[found]))
            shared = np.concatenate((shared[~is_own], own))
        return counts._replace(predicted=sizes, shared=shared)

    def _follow(
        self,
        box: Box,
        touched: NDArray[np.integer],
        old: NDArray[np.integer],
        new: NDArray[np.integer],
        stays: Mask,
    ) -> _Counted:
        """Count touched lesions that are not split.

        Args:
            box: The part's, and one voxel more on each side.
            touched: Number of each lesion in it.
            old: Place of the lesion of each voxel among these, from 1, of the box's shape.
            new: Components of the changed prediction in the box.
            stays: Voxels of lesions in the box around the part's.
        """
        num_touched, there = len(touched), self._target[box]
        links = np.unique(np.stack((old[stays], new[stays])).astype(np.int64), axis=1)
        links += np.array(
            [[-1], [num_touched - 1]]
        )  # node of each touched lesion, then of each new
        size = num_touched + int(new.max())
        graph = coo_array((np.ones(links.shape[1]), links), shape=(size, size))
        num_groups, group = connected_components(graph, directed=False)
        gone, come = _count(old, there), _count(new, there)
        sizes = np.concatenate((self.counts.predicted[touched - 1] - gone.sizes, come.sizes))
        shared = self.counts.shared[np.isin(self.counts.shared[:, 0], touched - 1)]
        place = np.searchsorted(touched - 1, shared[:, 0])
        entries = np.concatenate(
            (
                np.column_stack((place, shared[:, 1:])),
                gone.shared * np.array([1, 1, -1]),
                come.shared + np.array([num_touched, 0, 0]),
            )
        )
        pairs, number = np.unique(
            np.column_stack((group[entries[:, 0]], entries[:, 1])), axis=0, return_inverse=True
        )
        voxels = np.bincount(number.ravel(), entries[:, 2], len(pairs)).astype(np.int64)
        group_sizes = np.bincount(group, sizes, num_groups).astype(np.int64)
        return _Counted(group_sizes, np.column_stack((pairs, voxels))[voxels > 0])

    def _replace(
        self, touched: NDArray[np.integer], sizes: NDArray[np.int64], shared: NDArray[np.int64]
    ) -> LesionCounts:
        """Counts with other lesions, some of which may have no voxel, instead of some."""
        kept = np.ones(len(self.counts.predicted), bool)
        kept[touched] = False
        sizes = np.concatenate((self.counts.predicted[kept], sizes))
        others = self.counts.shared[kept[self.counts.shared[:, 0]]]
        others = np.column_stack(((np.cumsum(kept) - 1)[others[:, 0]], others[:, 1:]))
        shared = np.concatenate((others, shared + np.array([kept.sum(), 0, 0])))
        exists = sizes > 0
        shared = np.column_stack(((np.cumsum(exists) - 1)[shared[:, 0]], shared[:, 1:]))
        return self.counts._replace(predicted=sizes[exists], shared=shared)


def count_lesions(prediction: Mask, target: Mask, spacing_mm: Sequence[float]) -> LesionCounts:
    """Lesions of two masks of two or three axes; the spacing is that of these axes."""
    return Lesions(prediction, target, spacing_mm).counts


def _count(predicted: NDArray[np.integer], target: NDArray[np.integer]) -> _Counted:
    """Counts of two maps of components."""
    sizes = np.bincount(predicted.ravel(), minlength=1)[1:]
    both = (predicted > 0) & (target > 0)
    num_targets = int(target.max(initial=1))
    keys = (predicted[both].astype(np.int64) - 1) * num_targets + target[both] - 1
    pairs, voxels = np.unique(keys, return_counts=True)
    shared = np.column_stack((pairs // num_targets, pairs % num_targets, voxels))
    return _Counted(sizes, shared.astype(np.int64))


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
