"""Region pairs: which part of a candidate is better than the plain prediction, and which is worse.

A part is a connected set of voxels in which a candidate differs from the plain prediction. It is
preferred, or not, by what it alone does to the Dice, or another metric, of the whole sample. So a
pair says where a candidate is better, and one of the two in each voxel is always the plain
prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.selection import Overlap, count_overlap, mean_dice
from nnunetv2_mapo.metrics.components import find_components

LabelMap = NDArray[np.integer]
Mask = NDArray[np.bool_]
# Effect of each part `(P + 1,)` of a candidate `(*spatial)`, by the part of each voxel and P.
EffectsOf = Callable[[LabelMap, NDArray[np.integer], int], NDArray[np.floating]]
LARGEST_FACTOR = 30.0  # on the pull of a voxel, which cross-entropy's must stay comparable with
_LEAST_VOXELS = 2  # of a part: a single voxel is noise more often than not


class RegionPair(NamedTuple):
    """Preferences of one training sample; all arrays of the shape `(*spatial)`."""

    chosen: LabelMap
    rejected: LabelMap  # equal to `chosen` where nothing is preferred
    weight: NDArray[np.float32]  # of each voxel in [0, 1]; 0 where nothing is preferred
    part: NDArray[np.int32]  # number of the part that each voxel has it from; 0 for none
    num_parts: int  # with an effect on the metric
    num_preferred: int  # parts that are preferred to the plain prediction


def pair_regions(
    candidates: LabelMap,
    target: LabelMap,
    labels: Labels,
    tau: float,
    valid: Mask | None = None,
    effects_of: EffectsOf | None = None,
) -> RegionPair:
    """Put chosen and rejected together from the parts of all candidates.

    Where parts overlap, the one with the larger effect |Δ| counts. Its weight is min(1, |Δ| / τ).

    Args:
        candidates: Label maps, shape `(K, *spatial)`, the plain prediction first.
        target: Ground truth as a label map, shape `(*spatial)`.
        labels: Meaning of the label maps.
        tau: Effect from which a part has the full weight, τ > 0.
        valid: Mask of the voxels that count, shape `(*spatial)`; None: all do.
        effects_of: What parts do to the metric; None: to the Dice.
    """
    plain = candidates[0]
    before = None if effects_of else _count(plain, target, labels, valid)
    largest, part = np.zeros(plain.shape, np.float32), np.zeros(plain.shape, np.int32)
    chosen, rejected = plain.copy(), plain.copy()
    num_parts = num_preferred = num_before = 0
    for candidate in candidates[1:]:
        if effects_of is None:
            parts, effects = find_effects(plain, candidate, target, labels, valid, before)
        else:
            parts = find_parts(plain, candidate, valid)
            num_found = int(parts.max())
            _drop_noise(parts)
            effects = effects_of(candidate, parts, num_found).astype(np.float32)
        num_parts += int((effects != 0).sum())
        num_preferred += int((effects > 0).sum())
        place = np.flatnonzero(parts)  # few voxels of a large case
        effect = effects[parts.flat[place]]
        wins = np.abs(effect) > largest.flat[place]
        place, effect = place[wins], effect[wins]
        largest.flat[place] = np.abs(effect)
        part.flat[place] = parts.flat[place].astype(np.int32) + num_before
        num_before += len(effects) - 1
        ours, others = candidate.flat[place], plain.flat[place]
        chosen.flat[place] = np.where(effect > 0, ours, others)
        rejected.flat[place] = np.where(effect > 0, others, ours)
    weight = np.minimum(1, largest / tau)
    return RegionPair(chosen, rejected, weight, part, num_parts, num_preferred)


def even_out(
    weight: NDArray[np.float32], part: NDArray[np.int32], is_used: Mask
) -> NDArray[np.float32]:
    """Weights with which a part pulls by its effect, however many voxels it has.

    The voxels of a part of n voxels weigh n₀ / n times as much, at most `LARGEST_FACTOR` times; n₀
    is the geometric mean of n over the sample's parts, so that small and large ones meet halfway.

    Args:
        weight: As of `RegionPair`, shape `(*spatial)`.
        part: The same.
        is_used: Mask of the voxels that are learnt from, the same shape.
    """
    if not is_used.any():
        return weight
    sizes = np.bincount(part[is_used])
    factors = np.exp(np.log(sizes[sizes > 0]).mean()) / np.maximum(sizes, 1)
    evened = weight.copy()
    evened[is_used] *= np.minimum(factors, LARGEST_FACTOR)[part[is_used]].astype(np.float32)
    return evened


def find_parts(
    plain: LabelMap, candidate: LabelMap, valid: Mask | None = None
) -> NDArray[np.integer]:
    """Number of the part of each voxel, 0 for none; arguments as of `find_effects`."""
    differs: Mask = plain != candidate
    if valid is not None:
        differs &= valid
    return find_components(differs)


def _drop_noise(parts: NDArray[np.integer]) -> None:
    """Set parts that are too small to 0, in place; the others keep their numbers."""
    place = np.flatnonzero(parts)  # few voxels of a large case
    numbers = parts.flat[place]
    parts.flat[place[np.bincount(numbers)[numbers] < _LEAST_VOXELS]] = 0


class Effects(NamedTuple):
    """Parts of a candidate and what each of these P does."""

    parts: NDArray[np.integer]  # number of the part of each voxel, 0 for none, `(*spatial)`
    effects: NDArray[np.float32]  # ΔDice of each part alone, `(P + 1,)`; 0 for number 0


def find_effects(
    plain: LabelMap,
    candidate: LabelMap,
    target: LabelMap,
    labels: Labels,
    valid: Mask | None = None,
    before: Overlap | None = None,
) -> Effects:
    """Change of the sample's Dice when one part of the plain prediction is the candidate's.

    It is exact: a part changes the voxel counts only within itself. Arguments as of `pair_regions`,
    with two label maps in the place of all candidates, and the overlap of `plain` if it is known.
    """
    before = before or _count(plain, target, labels, valid)
    parts = find_parts(plain, candidate, valid)
    differs = parts > 0
    where = parts[differs]
    differing = [split_heads(each[differs], labels) for each in (plain, candidate, target)]
    sizes, changes = np.bincount(where, minlength=1), []
    for old, new, true in zip(*differing, strict=True):
        gain = new.astype(np.int8) - old.astype(np.int8)
        changes.append([np.bincount(where, each, len(sizes)) for each in (gain * true, gain)])
    change = torch.from_numpy(np.array(changes, np.int64)).permute(1, 2, 0)  # (2, P + 1, C)
    overlap = Overlap(*(old + more for old, more in zip(before, change, strict=True)))
    dice = mean_dice(Overlap(*(counts.contiguous() for counts in overlap))).numpy()
    effects = dice - dice[0]  # number 0 is no part and changes nothing
    effects[sizes < _LEAST_VOXELS] = 0
    return Effects(parts, effects.astype(np.float32))


def _count(plain: LabelMap, target: LabelMap, labels: Labels, valid: Mask | None) -> Overlap:
    if valid is not None:
        plain, target = plain[valid], target[valid]
    return count_overlap(torch.from_numpy(plain.ravel()), torch.from_numpy(target.ravel()), labels)


def split_heads(label_map: LabelMap, labels: Labels) -> Iterator[Mask]:
    """Mask of each foreground class, or region."""
    for head in foreground_heads(labels):
        yield head_mask(label_map, head, labels)


def foreground_heads(labels: Labels) -> range:
    """Number of the head of each foreground class, or region."""
    return range(0 if labels.regions is not None else 1, labels.num_heads)


def head_mask(label_map: LabelMap, head: int, labels: Labels) -> Mask:
    """Where a head is on."""
    mask: Mask = label_map & (1 << head) != 0 if labels.regions is not None else label_map == head
    return mask
