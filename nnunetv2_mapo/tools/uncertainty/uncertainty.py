"""Predictive entropy and vote variance of many segmentations of one image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

_Array = NDArray[np.floating]


def predictive_entropy(probabilities: _Array, *, has_regions: bool = False) -> _Array:
    """Entropy of the mean probabilities in each voxel, −Σ p ln p.

    Args:
        probabilities: Mean over the samples, shape `(C, *spatial)`.
        has_regions: Whether they are of regions, which may overlap, and not of classes: then it is
            Σ −p ln p − (1 − p) ln(1 − p).

    Returns:
        Shape `(*spatial)`, in nats: from 0 to ln C, of regions to C ln 2; 0 ln 0 is 0.
    """
    entropy: _Array = entr(_with_complements(probabilities, has_regions)).sum(0)
    return entropy


def vote_variance(shares: _Array, *, has_regions: bool = False) -> _Array:
    """Variance of the votes in each voxel: ½ Σ p (1 − p), of regions Σ p (1 − p).

    For two classes it is the variance p (1 − p) of a binary segmentation, at most 0.25; for more it
    is half the probability that two votes, drawn with replacement, differ.

    Args:
        shares: Share p of the votes for each class or region, shape `(C, *spatial)`.
        has_regions: Whether they are of regions.

    Returns:
        Shape `(*spatial)`: below 0.5, of regions at most C / 4.
    """
    p = _with_complements(shares, has_regions)
    variance: _Array = (p * (1 - p)).sum(0) / 2
    return variance


def _with_complements(p: _Array, has_regions: bool) -> _Array:
    """Of regions both values of each one, on and off; of classes as they are."""
    return np.concatenate([p, 1 - p]) if has_regions else p
