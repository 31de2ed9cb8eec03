"""clDice (arXiv:2003.07311): how much of each mask's centreline lies in the other mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects

from nnunetv2_mapo.metrics.change import Box, Change, Mask, crop, grow, inside
from nnunetv2_mapo.metrics.components import find_components

# Voxels around a part, by the number of axes, until its skeleton settles. With 8 at first, 2 of
# 3,200 parts of random shapes were not exact, with 16 none. In 3D more than 32 takes seconds for
# each part of a solid organ.
_MARGINS = {2: (16, 32, 64, 128, 256, 512), 3: (16, 32)}


class SkeletonCounts(NamedTuple):
    """Voxels of the skeletons of prediction and truth, and those that lie in the other's mask."""

    predicted: int
    predicted_inside: int
    target: int
    target_inside: int


class Skeletons:
    """Skeletons of two masks, scikit-image's; arguments as of `change.Measured`."""

    def __init__(self, prediction: Mask, target: Mask, spacing_mm: Sequence[float]) -> None:
        del spacing_mm  # skeletons are thinned voxel by voxel
        self._prediction, self._target = prediction, target
        self._predicted_skeleton, self._target_skeleton = skeleton(prediction), skeleton(target)
        self.counts = SkeletonCounts(
            *_count(self._predicted_skeleton, target), *_count(self._target_skeleton, prediction)
        )

    def counts_with(self, change: Change) -> SkeletonCounts:
        """The same, where thinning settles in a box around the part.

        Thinning reaches about as far as the mask is wide. The box is doubled until the skeleton of
        what it holds is, in its inner half, that of the whole mask, and beyond that half the part
        changes nothing in it. What has not settled in the largest box is an approximation.
        """
        shape = self._prediction.shape
        for margin in _MARGINS[len(shape)]:
            box, inner = (grow(change.box, shape, each) for each in (margin, margin // 2))
            before, after = (skeleton(each) for each in crop(self._prediction, change, box))
            if self._is_settled(before, after, inside(inner, box), inner):
                break
        target = self._target[box]
        old, new = _count(before, target), _count(after, target)
        num_predicted, num_inside, num_target, num_target_inside = self.counts
        skeleton_there = self._target_skeleton[change.box]
        gained = _count(skeleton_there, change.mask)[1]
        lost = _count(skeleton_there, self._prediction[change.box])[1]
        return SkeletonCounts(
            num_predicted + new[0] - old[0],
            num_inside + new[1] - old[1],
            num_target,
            num_target_inside + gained - lost,
        )

    def _is_settled(self, before: Mask, after: Mask, place: Box, inner: Box) -> bool:
        changed = before != after
        changed[place] = False
        is_same = np.array_equal(before[place], self._predicted_skeleton[inner])
        return is_same and not changed.any()


def skeleton(mask: Mask) -> Mask:
    """Centreline of a mask of two (Zhang) or three axes (Lee), by scikit-image.

    Components that Lee's thinning makes vanish, such as a block of 2 x 2 x 2 voxels, are kept, so
    that only an empty mask has no centreline.
    """
    from skimage.morphology import skeletonize

    found = np.zeros_like(mask)
    for box in find_objects(mask.view(np.int8)):  # one, or none
        found[box] = skeletonize(mask[box])
        components = find_components(mask[box])
        has_centreline = np.bincount(components[found[box]], minlength=components.max() + 1) > 0
        has_centreline[0] = True
        found[box] |= ~has_centreline[components]
    return found


def _count(centreline: Mask, mask: Mask) -> tuple[int, int]:
    return int(centreline.sum()), int((centreline & mask).sum())


def cl_dice(counts: SkeletonCounts) -> float:
    """Harmonic mean of the two shares of a skeleton in the other mask; 0 if one mask is empty."""
    if not (counts.predicted and counts.target):
        return 0.0
    precision = counts.predicted_inside / counts.predicted
    sensitivity = counts.target_inside / counts.target
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total else 0.0
