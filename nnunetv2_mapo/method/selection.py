"""Dice of candidates and the choice of a preference pair (eq. 3-5 of arXiv:2512.15009)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_mapo.method.labels import Labels

_CHUNK = 2**24  # voxels that are counted at a time, in 64-bit integers


class Pair(NamedTuple):
    """Candidates of a preference pair.

    Attributes:
        chosen: Index of the candidate with the highest Dice (eq. 3); the first one of a tie.
        rejected: Index of the one with the lowest Dice whose gap is at least τ (eq. 5); the first
            one of a tie; None if there is none.
    """

    chosen: int
    rejected: int | None


def select_pair(dice: Sequence[float], tau: float, tau_max: float = 1.0) -> Pair:
    """Choose the preference pair of one training sample (eq. 3-5).

    Args:
        dice: Dice of each candidate, in [0, 1].
        tau: Least Dice gap of a pair, in [0, 1]; equal candidates are none at 0 either.
        tau_max: Largest Dice gap of a pair, in [0, 1].

    Returns:
        The pair; without a rejected candidate where no gap is between `tau` and `tau_max`.
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

    Args:
        candidates: Label maps, shape `(K, *spatial)`.
        target: Ground truth as a label map, shape `(*spatial)`.
        labels: Meaning of the label maps.
        valid: Mask of the voxels that count, shape `(*spatial)`; None: all do.

    Returns:
        Shape `(K,)`, float64.
    """
    overlap = _region_overlap if labels.regions is not None else _class_overlap
    if valid is not None:
        candidates, target = candidates[:, valid], target[valid]
    candidates, target = candidates.flatten(1), target.flatten()
    return torch.stack(
        [_mean_dice(overlap(candidate, target, labels.num_heads)) for candidate in candidates]
    )


class _Overlap(NamedTuple):
    """Voxel counts of each foreground class or region."""

    intersection: Tensor
    total: Tensor


def _class_overlap(candidate: Tensor, target: Tensor, num_heads: int) -> _Overlap:
    confusion = torch.zeros(num_heads**2, dtype=torch.int64, device=candidate.device)
    for start in range(0, len(candidate), _CHUNK):
        part = slice(start, start + _CHUNK)
        pairs = candidate[part].long() * num_heads + target[part]
        confusion += torch.bincount(pairs, minlength=num_heads**2)
    confusion = confusion.view(num_heads, num_heads)
    total = confusion.sum(0) + confusion.sum(1)
    return _Overlap(confusion.diagonal()[1:], total[1:])


def _region_overlap(candidate: Tensor, target: Tensor, num_heads: int) -> _Overlap:
    ours = [(candidate >> bit) & 1 == 1 for bit in range(num_heads)]
    true = [(target >> bit) & 1 == 1 for bit in range(num_heads)]
    return _Overlap(
        torch.stack([(a & b).sum() for a, b in zip(ours, true, strict=True)]),
        torch.stack([a.sum() + b.sum() for a, b in zip(ours, true, strict=True)]),
    )


def _mean_dice(overlap: _Overlap) -> Tensor:
    is_present = overlap.total > 0
    if not is_present.any():
        return torch.ones((), dtype=torch.float64, device=is_present.device)
    return (2 * overlap.intersection[is_present].double() / overlap.total[is_present]).mean()
