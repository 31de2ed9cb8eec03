"""NSD, HD95 and ASD with a part of the prediction changed.

The whole case is MONAI's (`tools.metrics`), to which these are held. *Edge voxels* are those of a
mask with a face neighbour outside it or outside the image; distances are between edge voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

from nnunetv2_mapo.metrics.change import Box, Change, Mask, crop, grow, inside

Floats = NDArray[np.float64]
_ROUNDING = 1 + 1e-6  # a distance of exactly the tolerance is within it, as with 32-bit numbers


class Distances(NamedTuple):
    """Distance of each edge voxel to the nearest of the other mask, in mm; inf if that is empty."""

    predicted: Floats  # of the prediction's edge voxels, `(n,)`
    target: Floats  # of the ground truth's, `(m,)`


class Surfaces:
    """Edge voxels of two masks and their distances; arguments as of `change.Measured`."""

    def __init__(self, prediction: Mask, target: Mask, spacing_mm: Sequence[float]) -> None:
        self._prediction, self._spacing_mm = prediction, np.asarray(spacing_mm, np.float64)
        self._edges, points = self._find(prediction)
        _, self._target_points = self._find(target)
        self._points = points
        self._target_tree = KDTree(self._target_points)
        distances, self._nearest = KDTree(points).query(self._target_points)
        self.counts = Distances(self._target_tree.query(points)[0], distances)

    def _find(self, mask: Mask) -> tuple[NDArray[np.intp], Floats]:
        """Flat indices of a mask's edge voxels, in order, and their places in mm."""
        boxes = find_objects(mask.view(np.int8))
        if not boxes:
            return np.zeros(0, np.intp), np.zeros((0, mask.ndim))
        places = np.argwhere(_edges(mask[boxes[0]])) + [axis.start for axis in boxes[0]]
        return np.ravel_multi_index(tuple(places.T), mask.shape), places * self._spacing_mm

    def counts_with(self, change: Change) -> Distances:
        """Exact: what is not near the part keeps its distance.

        An edge voxel of the truth looks for its nearest one anew where the one it had is gone, and
        where the part is nearer than that.
        """
        gone, added = self._find_changed_edges(change)
        stays = np.ones(len(self._points), bool)
        stays[np.searchsorted(self._edges, gone)] = False
        predicted = np.concatenate(
            [self.counts.predicted[stays], self._target_tree.query(added)[0]]
        )
        distances = self.counts.target
        if len(distances):
            distances = distances.copy()
            lost = ~np.append(stays, True)[self._nearest]  # without any: inf
            if lost.any():
                left = KDTree(self._points[stays], balanced_tree=False, compact_nodes=False)
                distances[lost] = left.query(self._target_points[lost])[0]
            near = self._may_be_nearer(change.box, distances)
            nearest = KDTree(added).query(self._target_points[near])[0]
            distances[near] = np.minimum(distances[near], nearest)
        return Distances(predicted, distances)

    def _find_changed_edges(self, change: Change) -> tuple[NDArray[np.intp], Floats]:
        """Flat indices of the edge voxels that are none any more; places of the new ones in mm."""
        shape = self._prediction.shape
        affected = grow(change.box, shape, 1)
        around = grow(change.box, shape, 2)
        place = inside(affected, around)
        before, after = (_edges(each)[place] for each in crop(self._prediction, change, around))
        corner = [axis.start for axis in affected]
        gone, added = (np.argwhere(each) + corner for each in (before & ~after, after & ~before))
        return np.ravel_multi_index(tuple(gone.T), shape), added * self._spacing_mm

    def _may_be_nearer(self, box: Box, distances: Floats) -> NDArray[np.bool_]:
        """Edge voxels of the truth that are farther from theirs than from a box of new ones."""
        low, high = (np.array([getattr(axis, end) for axis in box]) for end in ("start", "stop"))
        low, high = (low - 1) * self._spacing_mm, high * self._spacing_mm  # a neighbour may be new
        places = self._target_points
        apart = np.maximum(0, np.maximum(low - places, places - high))
        found: NDArray[np.bool_] = (apart**2).sum(1) < distances**2
        return found


def _edges(mask: Mask) -> Mask:
    found: Mask = mask & ~binary_erosion(mask)
    return found


def nsd(distances: Distances, tolerance_mm: float) -> float:
    """Share of all edge voxels within the tolerance; 0 if one mask is empty."""
    both = np.concatenate(distances)
    return float((both <= tolerance_mm * _ROUNDING).mean())


def asd_mm(distances: Distances) -> float:
    """Mean of all distances, in mm; inf if one mask is empty."""
    return float(np.concatenate(distances).mean())


def hd95_mm(distances: Distances) -> float:
    """Larger of the two directions' 95th percentiles, in mm; inf if one mask is empty."""
    if not all(map(len, distances)):
        return float("inf")
    return max(float(np.percentile(each, 95)) for each in distances)
