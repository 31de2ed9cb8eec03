"""Region pairs: which part of a candidate is better than the plain prediction, and which is worse.

A part is a connected set of voxels in which a candidate differs from the plain prediction. It is
preferred, or not, by what it alone does to the Dice, or another metric, of the whole sample. So a
pair says where a candidate is better, and one of the two in each voxel is always the plain
prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.parts import (
    LEAST_VOXELS,
    LabelMap,
    Mask,
    Parts,
    Slab,
    find_effects,
    find_parts,
)
from nnunetv2_mapo.method.selection import Overlap

# Effect of each part `(P + 1,)` of a candidate `(*spatial)`, by the part of each voxel and P.
EffectsOf = Callable[[LabelMap, NDArray[np.integer], int], NDArray[np.floating]]
LARGEST_FACTOR = 30.0  # on the pull of a voxel, which cross-entropy's must stay comparable with


class RegionPair(NamedTuple):
    """Preferences of a slab of a training sample; all arrays of the shape `(*spatial)`."""

    chosen: LabelMap
    rejected: LabelMap  # equal to `chosen` where nothing is preferred
    weight: NDArray[np.float32]  # of each voxel in [0, 1]; 0 where nothing is preferred
    part: NDArray[np.int32]  # number of the part that each voxel has it from; 0 for none


class RegionPairs(NamedTuple):
    """Parts of all candidates of a sample, of which chosen and rejected are put together."""

    parts: list[Parts]  # of each candidate but the plain one
    tau: float  # effect from which a part has the full weight, > 0

    @property
    def num_parts(self) -> int:
        """Parts with an effect on the metric."""
        return sum(each.num_parts for each in self.parts)

    @property
    def num_preferred(self) -> int:
        """Parts that are preferred to the plain prediction."""
        return sum(each.num_preferred for each in self.parts)

    def put_together(self, number: int, slab: Slab) -> RegionPair:
        """Chosen and rejected of a slab by its number in the order in which they were looked at.

        Where parts overlap, the one with the larger effect |Δ| counts. Its weight is
        min(1, |Δ| / τ).
        """
        plain = slab.candidates[0]
        largest, part = np.zeros(plain.shape, np.float32), np.zeros(plain.shape, np.int32)
        chosen, rejected = plain.copy(), plain.copy()
        num_before = 0
        for candidate, known in zip(slab.candidates[1:], self.parts, strict=True):
            parts = find_parts(plain, candidate, slab.valid)
            place = np.flatnonzero(parts)  # few voxels of a large case
            numbers = parts.flat[place].astype(np.int64) + known.starts[number]
            effect = known.effects[numbers]
            wins = np.abs(effect) > largest.flat[place]
            place, effect = place[wins], effect[wins]
            largest.flat[place] = np.abs(effect)
            part.flat[place] = known.first[numbers[wins]] + num_before
            num_before += len(known.first) - 1
            ours, others = candidate.flat[place], plain.flat[place]
            chosen.flat[place] = np.where(effect > 0, ours, others)
            rejected.flat[place] = np.where(effect > 0, others, ours)
        return RegionPair(chosen, rejected, np.minimum(1, largest / self.tau), part)


def pair_regions(slabs: Iterable[Slab], labels: Labels, tau: float, before: Overlap) -> RegionPairs:
    """Find the parts of all candidates by what each does to the Dice of the sample.

    Args:
        slabs: The sample in the order of its planes.
        labels: Meaning of the label maps.
        tau: Effect from which a part has the full weight, τ > 0.
        before: Overlap of the plain prediction of the whole sample, shape `(C,)`.
    """
    return RegionPairs(find_effects(slabs, labels, before), tau)


def pair_regions_by(sample: Slab, tau: float, effects_of: EffectsOf) -> RegionPairs:
    """Find the parts of all candidates by what each does to another metric.

    Args:
        sample: All of it in one slab.
        tau: Effect from which a part has the full weight, τ > 0.
        effects_of: What the parts of a candidate do to the metric.
    """
    plain, *candidates = sample.candidates
    return RegionPairs([_parts_by(plain, each, sample, effects_of) for each in candidates], tau)


def _parts_by(plain: LabelMap, candidate: LabelMap, sample: Slab, effects_of: EffectsOf) -> Parts:
    parts = find_parts(plain, candidate, sample.valid)
    num_found = int(parts.max())
    place = np.flatnonzero(parts)  # few voxels of a large case
    numbers = parts.flat[place]
    is_noise = np.bincount(numbers, minlength=num_found + 1) < LEAST_VOXELS
    parts.flat[place[is_noise[numbers]]] = 0
    effects = effects_of(candidate, parts, num_found).astype(np.float32)
    effects[is_noise] = 0
    first = np.arange(num_found + 1, dtype=np.int32)
    return Parts([0], effects, first, int((effects != 0).sum()), int((effects > 0).sum()))


def even_out(
    weight: NDArray[np.float32],
    part: NDArray[np.int32],
    is_used: Mask,
    sizes: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Weights with which a part pulls by its effect, however many voxels it has.

    The voxels of a part of n voxels weigh n₀ / n times as much, at most `LARGEST_FACTOR` times; n₀
    is the geometric mean of n over the sample's parts, so that small and large ones meet halfway.

    Args:
        weight: As of `RegionPair`, shape `(*spatial)`.
        part: The same.
        is_used: Mask of the voxels that are learnt from, the same shape.
        sizes: Such voxels of each part in the whole sample, by number.
    """
    if not is_used.any():
        return weight
    factors = np.exp(np.log(sizes[sizes > 0]).mean()) / np.maximum(sizes, 1)
    evened = weight.copy()
    evened[is_used] *= np.minimum(factors, LARGEST_FACTOR)[part[is_used]].astype(np.float32)
    return evened
