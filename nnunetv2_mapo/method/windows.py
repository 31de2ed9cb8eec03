"""Sliding windows of a case, and how they decide together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor
from torch.nn.functional import pad

from nnunetv2_mapo.method.volumes import Volume

Index = tuple[int | slice, ...]


class Window(NamedTuple):
    """A sliding window, as indices for the three spatial axes; in 2D the first is the slice.

    The cells of all windows are disjoint and cover the case: a voxel belongs to the window whose
    centre is nearest along each axis.
    """

    place: Index  # of the window
    cell: Index  # of the voxels that belong to it

    @property
    def first_plane(self) -> int:
        """Where it begins along the first axis."""
        planes = self.place[0]
        return planes if isinstance(planes, int) else int(planes.start)


def find_windows(
    shape: Sequence[int], patch_size: Sequence[int], tile_step_size: float
) -> list[Window]:
    """Windows that cover a case of three spatial axes, at least as large as the patch, in voxels.

    With a patch of two entries they lie in single slices. Two of them are at most the share
    `tile_step_size` of the patch apart, in (0, 1]; at 1 they overlap only where they must.
    """
    in_plane = tuple(shape[-len(patch_size) :])
    starts = compute_steps_for_sliding_window(in_plane, tuple(patch_size), tile_step_size)
    axes: list[Any] = [_divide(*axis) for axis in zip(starts, patch_size, in_plane, strict=True)]
    if len(patch_size) == 2:
        axes.insert(0, [(plane, plane) for plane in range(shape[0])])
    return [Window(*zip(*steps, strict=True)) for steps in itertools.product(*axes)]


def _divide(starts: Sequence[int], size: int, length: int) -> list[tuple[slice, slice]]:
    """Place and cell of each window along one axis; cells meet in the middle of an overlap."""
    middles = [(low + size + high) // 2 for low, high in itertools.pairwise(starts)]
    cells = itertools.pairwise([0, *middles, length])
    return [
        (slice(start, start + size), slice(*cell))
        for start, cell in zip(starts, cells, strict=True)
    ]


class Padded(NamedTuple):
    """A case with so many voxels around it that the patch fits in."""

    shape: tuple[int, ...]  # with them, three axes
    front: tuple[int, ...]  # how many are in front along each axis; half of them, as nnU-Net's
    inner: tuple[int, ...]  # shape without them

    @classmethod
    def around(cls, shape: Sequence[int], patch_size: Sequence[int]) -> Padded:
        """The smallest one; with a patch of two entries none are added along the first axis."""
        patch = (*(1 for _ in shape[len(patch_size) :]), *patch_size)
        padded = tuple(max(size, least) for size, least in zip(shape, patch, strict=True))
        front = tuple((more - size) // 2 for more, size in zip(padded, shape, strict=True))
        return cls(padded, front, tuple(shape))

    def clip(self, place: Index) -> Index:
        """What of a place in the padded case is in the case itself, as a place in that."""
        return tuple(
            axis
            if isinstance(axis, int)
            else slice(max(axis.start - before, 0), min(axis.stop - before, size))
            for axis, before, size in zip(place, self.front, self.inner, strict=True)
        )

    def inside(self, place: Index, window: Window) -> Index:
        """A place in the case as one in a window, `(*patch)`."""
        return tuple(
            slice(axis.start + before - start.start, axis.stop + before - start.start)
            for axis, before, start in zip(place, self.front, window.place, strict=True)
            if isinstance(axis, slice) and isinstance(start, slice)
        )


def read_window(image: Volume, place: Index, front: Sequence[int]) -> Tensor:
    """Window of a case `(channels, *spatial)`, zeros around it, float32.

    Its place is in the padded case, see `Padded`.
    """
    index: list[int | slice] = []
    missing: list[int] = []  # voxels in front of and behind each axis of the window, the last first
    for axis, before, size in zip(place, front, image.shape[1:], strict=True):
        if isinstance(axis, int):
            index.append(axis)
            continue
        start, stop = axis.start - before, axis.stop - before
        index.append(slice(max(start, 0), min(stop, size)))
        missing = [max(-start, 0), max(stop - size, 0), *missing]
    window = torch.as_tensor(image[(slice(None), *index)])
    return pad(window, missing) if any(missing) else window


class RollingVotes:
    """Votes of windows on the planes of a case that further windows may still reach.

    Windows come in the order of `find_windows`, so that planes are done one after another.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, weight: Tensor) -> None:
        """Begin with the first planes.

        Args:
            shape: Of the label maps `(K, planes, rows, columns)`, with as many planes as a window.
            dtype: Of the label maps.
            weight: Of the vote of a window's voxels, > 0, `(*patch)`.
        """
        self.first = 0  # plane
        self._labels = torch.zeros(tuple(shape), dtype=dtype)
        self._lead = torch.zeros(tuple(shape), dtype=weight.dtype)
        self._weight = weight

    def vote(self, place: Index, ballots: Tensor) -> None:
        """Take the votes of a window, label maps `(K, *patch)`."""
        planes, *others = place
        if isinstance(planes, int):
            index: Index = (slice(None), planes - self.first, *others)
        else:
            moved = slice(planes.start - self.first, planes.stop - self.first)
            index = (slice(None), moved, *others)
        vote(self._labels[index], self._lead[index], ballots, self._weight)

    def before(self, plane: int) -> Tensor:
        """Label maps `(K, planes, …)` of the planes before this one, no copy."""
        return self._labels[:, : plane - self.first]

    def move_to(self, plane: int) -> None:
        """Drop the planes before this one, which are done."""
        num_done = plane - self.first
        for each in (self._labels, self._lead):
            num_left = each.shape[1] - num_done
            for place in range(num_left):  # one by one: no copy of a large slab
                each[:, place] = each[:, place + num_done]
            each[:, num_left:] = 0
        self.first = plane


def vote(labels: Tensor, lead: Tensor, ballot: Tensor, weight: Tensor) -> None:
    """Let one more window vote on the label of its voxels (Boyer and Moore's majority vote).

    `labels` and `lead`, the label that leads and by how much (0 at first), are changed in place;
    `ballot` is the window's label of each voxel, `weight` > 0 that of its vote.

    Of two labels the one with the larger sum of weights leads; of more, the one that has more than
    half of the weights, if there is one. It takes no sum for each label, of which a large case has
    no room.
    """
    is_same = labels == ballot
    after = torch.where(is_same, lead + weight, lead - weight)
    labels.copy_(torch.where(after < 0, ballot, labels))
    lead.copy_(after.abs())


def find_units(
    shape: Sequence[int], patch_size: Sequence[int], unit: str, tile_step_size: float
) -> list[Index]:
    """Parts of a case that have a preference pair each; disjoint, and together the case.

    A `unit` is a `"case"`, a `"slice"` along the first axis or a `"window"`, the cells of
    `find_windows`, whose arguments the others are; the case may be smaller than the patch.
    """
    if unit == "case":
        return [(slice(None),) * 3]
    if unit == "slice":
        return [(plane, slice(None), slice(None)) for plane in range(shape[0])]
    padded = Padded.around(shape, patch_size)
    windows = find_windows(padded.shape, patch_size, tile_step_size)
    return [padded.clip(window.cell) for window in windows]


def split_planes(place: Index, shape: Sequence[int], most_voxels: int) -> list[Index]:
    """Parts of a place of a case, whole planes of at most about so many voxels.

    A place within one plane is left as it is.
    """
    planes, *others = place
    if isinstance(planes, int):
        return [place]
    in_plane = [len(range(*axis.indices(n))) if isinstance(axis, slice) else 1
                for axis, n in zip(others, shape[1:], strict=True)]  # fmt: skip
    start, stop, _ = planes.indices(shape[0])
    step = max(1, most_voxels // max(1, math.prod(in_plane)))
    starts = range(start, stop, step)
    return [(slice(low, min(low + step, stop)), *others) for low in starts]
