"""What a metric would be with one part of the prediction changed, without computing all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Box = tuple[slice, ...]


class Change(NamedTuple):
    """A part of a mask that becomes another; what lies outside its box stays as it is."""

    box: Box  # place in the mask, of two or three axes
    mask: Mask  # what the mask is there afterwards, of the box's shape


class Measured(Protocol):
    """What a family of metrics counts of a prediction and its ground truth.

    It is made of `(prediction, target, spacing_mm)`: two masks of one shape, and the distance of
    neighbouring voxels along each of the two or three axes.
    """

    @property
    def counts(self) -> Any:
        """What the family's metrics are functions of."""

    def counts_with(self, change: Change) -> Any:
        """The same with a part of the prediction changed; neither mask is touched."""


def grow(box: Box, shape: Sequence[int], margin: int) -> Box:
    """A box with so many voxels more on each side, as far as there are any."""
    return tuple(
        slice(max(0, each.start - margin), min(size, each.stop + margin))
        for each, size in zip(box, shape, strict=True)
    )


def enclose(boxes: Sequence[Box]) -> Box:
    """Smallest box that holds all of these."""
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)


def overlap(one: Box, other: Box) -> Box | None:
    """Box that two boxes share, if there is one."""
    axes = zip(one, other, strict=True)
    shared = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in axes)
    return shared if all(axis.start < axis.stop for axis in shared) else None


def inside(box: Box, outer: Box) -> Box:
    """Place of a box in a larger one that holds it."""
    return tuple(
        slice(each.start - around.start, each.stop - around.start)
        for each, around in zip(box, outer, strict=True)
    )


def crop(mask: Mask, change: Change, box: Box) -> tuple[Mask, Mask]:
    """A mask in a box that holds a change, before and after it."""
    before = mask[box]
    after = before.copy()
    after[inside(change.box, box)] = change.mask
    return before, after
