"""Dice of candidates and the choice of a preference pair (eq. 3-5 of arXiv:2512.15009)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_mapo.method.labels import Labels

_CHUNK = 2**20  # voxels that are counted at a time, in 64-bit integers


class Pair(NamedTuple):
    """Candidates of a preference pair by their index; the first one of a tie."""

    chosen: int  # the highest Dice (eq. 3)
    rejected: int | None  # the lowest Dice whose gap is at least τ (eq. 5), if there is one


def select_pair(dice: Sequence[float], tau: float, tau_max: float = 1.0) -> Pair:
    """Choose the preference pair of one training sample by the Dice of each candidate (eq. 3-5).

    It has no rejected candidate where no gap is between `tau` and `tau_max`, which are in [0, 1];
    equal candidates are no pair at 0 either.
    """
    candidates = range(len(dice))
    chosen = max(candidates, key=lambda k: dice[k])
    gaps = [dice[chosen] - dice[k] for k in candidates]
    valid = [k for k in candidates if tau <= gaps[k] <= tau_max and gaps[k] > 0]  # eq. 4
    return Pair(chosen, min(valid, key=lambda k: dice[k]) if valid else None)


def candidate_dice(
    candidates: Tensor, target: Tensor, labels: Labels, valid: Tensor | None = None
) -> Tensor:
    """Dice of every candidate: mean over the foreground classes, or regions, that are present.

    Present means in the target or in the candidate. Where none is (both empty) the Dice is 1.
    Label maps `(K, *spatial)` of candidates and `(*spatial)` of the ground truth give `(K,)`,
    float64; `valid`, `(*spatial)`, masks the voxels that count, None: all do.
    """
    return mean_dice(count_candidates(candidates, target, labels, valid))


class Overlap(NamedTuple):
    """Voxels of each foreground class or region in both maps, and in the one plus in the other.

    Shape `(…, C)`, int64.
    """

    intersection: Tensor
    total: Tensor

    def plus(self, other: Overlap) -> Overlap:
        """Overlap of two parts of a sample together."""
        return Overlap(self.intersection + other.intersection, self.total + other.total)


def count_candidates(
    candidates: Tensor, target: Tensor, labels: Labels, valid: Tensor | None = None
) -> Overlap:
    """Overlap of every candidate, shape `(K, C)`; arguments as of `candidate_dice`."""
    if valid is not None:
        candidates, target = candidates[:, valid], target[valid]
    candidates, target = candidates.flatten(1), target.flatten()
    overlaps = [count_overlap(candidate, target, labels) for candidate in candidates]
    return Overlap(*(torch.stack(counts) for counts in zip(*overlaps, strict=True)))


def count_overlap(segmentation: Tensor, target: Tensor, labels: Labels) -> Overlap:
    """Overlap of two label maps of shape `(n,)`."""
    if labels.regions is not None:
        ours = [(segmentation >> bit) & 1 == 1 for bit in range(labels.num_heads)]
        true = [(target >> bit) & 1 == 1 for bit in range(labels.num_heads)]
        return Overlap(
            torch.stack([(a & b).sum() for a, b in zip(ours, true, strict=True)]),
            torch.stack([a.sum() + b.sum() for a, b in zip(ours, true, strict=True)]),
        )
    size = labels.num_heads
    confusion = torch.zeros(size**2, dtype=torch.int64, device=segmentation.device)
    for start in range(0, len(segmentation), _CHUNK):
        part = slice(start, start + _CHUNK)
        pairs = segmentation[part].long() * size + target[part]
        confusion += torch.bincount(pairs, minlength=size**2)
    confusion = confusion.view(size, size)
    return Overlap(confusion.diagonal()[1:], (confusion.sum(0) + confusion.sum(1))[1:])


def mean_dice(overlap: Overlap) -> Tensor:
    """Mean Dice over what is present, shape `(…)`, float64; 1 where nothing is."""
    is_present = overlap.total > 0
    dice = 2 * overlap.intersection.double() / overlap.total.clamp(min=1)
    num_present = is_present.sum(-1)
    return torch.where(num_present > 0, dice.sum(-1) / num_present.clamp(min=1), 1.0)
