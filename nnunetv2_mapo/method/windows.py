"""Sliding windows of a case, and how they decide together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor

Index = tuple[int | slice, ...]


class Window(NamedTuple):
    """A sliding window, as indices for the three spatial axes; in 2D the first is the slice.

    The cells of all windows are disjoint and cover the case: a voxel belongs to the window whose
    centre is nearest along each axis.
    """

    place: Index  # of the window
    cell: Index  # of the voxels that belong to it


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
    # The miner pads a case that is smaller than the patch, half of it in front.
    patch = (*(1 for _ in shape[len(patch_size) :]), *patch_size)
    padded = [max(size, least) for size, least in zip(shape, patch, strict=True)]
    front = [(large - size) // 2 for large, size in zip(padded, shape, strict=True)]

    def clip(axis: int | slice, before: int, size: int) -> int | slice:
        if isinstance(axis, int):
            return axis
        return slice(max(axis.start - before, 0), min(axis.stop - before, size))

    windows = find_windows(padded, patch_size, tile_step_size)
    return [tuple(map(clip, window.cell, front, shape)) for window in windows]
