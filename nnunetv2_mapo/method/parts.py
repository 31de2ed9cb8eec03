"""Parts of a candidate, connected sets of voxels in which it differs from the plain prediction.

A case may be too large to look at as a whole, so it is looked at in slabs of planes: a part that
reaches through several is put together of its pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.selection import Overlap, mean_dice
from nnunetv2_mapo.metrics.components import find_components

LabelMap = NDArray[np.integer]
Mask = NDArray[np.bool_]
LEAST_VOXELS = 2  # of a part: a single voxel is noise more often than not


class Slab(NamedTuple):
    """Consecutive planes of a training sample, or all of it."""

    candidates: LabelMap  # label maps `(K, *spatial)`, the plain prediction first
    target: LabelMap  # ground truth as a label map, `(*spatial)`
    valid: Mask | None = None  # voxels that count, `(*spatial)`; None: all do


class Parts(NamedTuple):
    """Parts of a candidate. Those of slab s have the numbers `starts[s]` + 1, + 2, … in its order.

    Pieces of one part have numbers of their own and share the rest; number 0 is no part.
    """

    starts: list[int]
    effects: NDArray[np.float32]  # of the part alone on the metric, Δ, by number
    first: NDArray[np.int32]  # number of the first piece of the same part, by number
    num_parts: int  # with an effect
    num_preferred: int  # with an effect > 0


def find_parts(
    plain: LabelMap, candidate: LabelMap, valid: Mask | None = None
) -> NDArray[np.integer]:
    """Number of the part of each voxel in the order of their first voxels, 0 for none.

    All arrays have the shape `(*spatial)`; `valid` is as of `Slab`.
    """
    differs: Mask = plain != candidate
    if valid is not None:
        differs &= valid
    return find_components(differs)


def find_effects(slabs: Iterable[Slab], labels: Labels, before: Overlap) -> list[Parts]:
    """Change of the sample's Dice when one part of the plain prediction is a candidate's.

    It is exact: a part changes the voxel counts only within itself.

    Args:
        slabs: The sample in the order of its planes.
        labels: Meaning of the label maps.
        before: Overlap of the plain prediction of the whole sample, shape `(C,)`.

    Returns:
        Parts of each candidate but the plain one.
    """
    joined: list[_JoinedParts] = []
    for slab in slabs:
        plain, *candidates = slab.candidates
        joined = joined or [_JoinedParts(before) for _ in candidates]
        for each, candidate in zip(joined, candidates, strict=True):
            parts = find_parts(plain, candidate, slab.valid)
            each.add(parts, _count_changes(parts, plain, candidate, slab.target, labels))
    return [each.finish() for each in joined]


def _count_changes(
    parts: NDArray[np.integer],
    plain: LabelMap,
    candidate: LabelMap,
    target: LabelMap,
    labels: Labels,
) -> NDArray[np.int64]:
    """Size of each of P parts, and its change of both counts of `Overlap`, `(P, 1 + 2 C)`."""
    differs = parts > 0
    where = parts[differs]
    differing = [split_heads(each[differs], labels) for each in (plain, candidate, target)]
    sizes = np.bincount(where, minlength=1)
    changes: list[list[NDArray[Any]]] = [[], []]
    for old, new, true in zip(*differing, strict=True):
        gain = new.astype(np.int8) - old.astype(np.int8)
        for counts, weights in zip(changes, (gain * true, gain), strict=True):
            counts.append(np.bincount(where, weights, len(sizes)))
    return np.array([sizes, *changes[0], *changes[1]]).astype(np.int64)[:, 1:].T


class _JoinedParts:
    """Parts of one candidate, put together slab by slab.

    Only those that reach the last plane so far are kept with what was counted of them: the others
    are complete, however many there are.
    """

    def __init__(self, before: Overlap) -> None:
        self._before = before
        self._starts = [0]
        self._effects: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []  # of first pieces
        self._joined: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # piece, first piece
        # of the parts that reach the last plane: their first pieces, counts, and where they are
        self._open: NDArray[np.int64] | None = None
        self._counts = np.zeros((0, 0), np.int64)
        self._last_plane: NDArray[np.integer] = np.zeros(0, np.int64)

    def add(self, parts: NDArray[np.integer], counts: NDArray[np.int64]) -> None:
        """Add a slab by the number of the part of each voxel and `_count_changes`."""
        start, num_parts = self._starts[-1], len(counts)
        self._starts.append(start + num_parts)
        numbers = np.arange(start + 1, start + num_parts + 1)
        group: NDArray[np.integer] = np.arange(num_parts)  # of each part
        if self._open is not None and len(self._open):
            edges = _touching(self._last_plane, parts[0], len(self._open))
            numbers = np.concatenate((self._open, numbers))
            counts = np.concatenate((self._counts, counts))
            group = _find_groups(edges, len(numbers))
            order = np.argsort(group, kind="stable")
            begins = np.flatnonzero(np.diff(group[order], prepend=-1))
            counts = np.add.reduceat(counts[order], begins)
            first = np.minimum.reduceat(numbers[order], begins)
            is_later = numbers != first[group]
            self._joined.append((numbers[is_later], first[group][is_later]))
            group, numbers = group[len(self._open) :], first
        last = parts[-1]
        is_open = np.zeros(len(numbers), bool)
        is_open[group[last[last > 0].astype(np.int64) - 1]] = True
        self._close(numbers[~is_open], counts[~is_open])
        self._open, self._counts = numbers[is_open], counts[is_open]
        places = np.concatenate(([0], np.cumsum(is_open)[group]))  # among the open ones, from 1
        self._last_plane = places[last]

    def _close(self, numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Note the effects of parts that are complete."""
        sizes = counts[:, 0]
        changes = np.zeros((len(counts) + 1, counts.shape[1] - 1), np.int64)  # the first: nothing
        changes[1:] = counts[:, 1:]
        with_part = self._before.plus(Overlap(*torch.from_numpy(changes).chunk(2, dim=1)))
        dice = mean_dice(Overlap(*(each.contiguous() for each in with_part))).numpy()
        effects = (dice[1:] - dice[0]) * (sizes >= LEAST_VOXELS)
        self._effects.append((numbers, effects.astype(np.float32)))

    def finish(self) -> Parts:
        """All of them, when every slab was added."""
        if self._open is not None:
            self._close(self._open, self._counts)
        effects = np.zeros(self._starts[-1] + 1, np.float32)
        first = np.arange(len(effects), dtype=np.int32)
        for numbers, values in self._effects:
            effects[numbers] = values
        num_parts, num_preferred = int((effects != 0).sum()), int((effects > 0).sum())
        for pieces, others in self._joined:
            first[pieces] = others
        while not np.array_equal(first, further := first[first]):
            first = further
        return Parts(self._starts, effects[first], first, num_parts, num_preferred)


def _touching(
    last: NDArray[np.integer], following: NDArray[np.integer], num_open: int
) -> NDArray[np.int64]:
    """Pairs of parts that belong together as they touch between two planes, `(n, 2)`.

    Args:
        last: Number from 1 of an open part in each place of the last plane, 0 for none.
        following: The same of parts of the slab behind it in its first plane.
        num_open: Parts of the first kind, whose indices come before those of the second kind.
    """
    components = find_components(np.stack((last > 0, following > 0)))
    shift = np.int64(num_open)
    pairs = [
        np.unique(np.stack((each[each > 0] + more, found[each > 0])), axis=1)
        for each, more, found in ((last, -1, components[0]), (following, shift - 1, components[1]))
    ]
    part, component = np.concatenate(pairs, axis=1).astype(np.int64)
    order = np.argsort(component, kind="stable")
    part, component = part[order], component[order]
    is_same = component[1:] == component[:-1]
    return np.stack((part[:-1][is_same], part[1:][is_same]), axis=1)


def _find_groups(edges: NDArray[np.int64], num_nodes: int) -> NDArray[np.int32]:
    """Number of the group of each node, from 0, in the order of their first nodes."""
    graph = coo_array((np.ones(len(edges), np.int8), edges.T), (num_nodes, num_nodes))
    groups: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return groups


def split_heads(label_map: LabelMap, labels: Labels) -> Iterator[Mask]:
    """Mask of each foreground class, or region."""
    for head in foreground_heads(labels):
        yield head_mask(label_map, head, labels)


def foreground_heads(labels: Labels) -> Sequence[int]:
    """Number of the head of each foreground class, or region."""
    return range(0 if labels.regions is not None else 1, labels.num_heads)


def head_mask(label_map: LabelMap, head: int, labels: Labels) -> Mask:
    """Where a head is on."""
    mask: Mask = label_map & (1 << head) != 0 if labels.regions is not None else label_map == head
    return mask
