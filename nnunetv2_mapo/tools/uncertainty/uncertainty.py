"""Predictive entropy and vote variance of many segmentations of one image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.floating]


class MapSummary(NamedTuple):
    """A case's maps in numbers.

    Attributes:
        mean_entropy: Mean over the segmented foreground in nats, over the whole image where
            nothing is segmented.
        max_entropy: Largest of the whole image, in nats.
        mean_variance: Mean vote variance, over the same voxels as `mean_entropy`.
        num_segmented: Voxels of the segmented foreground; where it is 0, the means are on another
            scale than those of other cases.
    """

    mean_entropy: float
    max_entropy: float
    mean_variance: float
    num_segmented: int


def predictive_entropy(probabilities: _Array, *, has_regions: bool = False) -> _Array:
    """Entropy of the mean probabilities in each voxel, −Σ p ln p.

    Args:
        probabilities: Mean over the samples, shape `(C, *spatial)`: of classes, or of regions,
            which may overlap.
        has_regions: Whether they are of regions: then it is Σ −p ln p − (1 − p) ln(1 − p).

    Returns:
        Shape `(*spatial)`, in nats: from 0 to ln C, of regions to C ln 2; 0 ln 0 is 0.
    """
    p = _with_complements(probabilities) if has_regions else probabilities
    logarithms = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy: _Array = np.maximum(-(p * logarithms).sum(0), 0)  # no -0 where one p is 1
    return entropy


def vote_variance(shares: _Array, *, has_regions: bool = False) -> _Array:
    """Variance of the votes in each voxel: half the sum of p (1 − p) over the values.

    For two classes it is the variance p (1 − p) of a binary segmentation, at most 0.25; for more it
    is half the probability that two votes, drawn with replacement, differ.

    Args:
        shares: Share p of the votes for each class, or for each region, shape `(C, *spatial)`.
        has_regions: Whether they are of regions: then it is the sum of their variances p (1 − p).

    Returns:
        Shape `(*spatial)`: below 0.5, of regions at most C / 4.
    """
    p = _with_complements(shares) if has_regions else shares
    variance: _Array = (p * (1 - p)).sum(0) / 2
    return variance


def _with_complements(probabilities: _Array) -> _Array:
    """Both values of each region: on and off."""
    return np.concatenate([probabilities, 1 - probabilities])


def summarize_maps(
    entropy: _Array, variance: _Array, is_foreground: NDArray[np.bool_]
) -> MapSummary:
    """Numbers of a case.

    Args:
        entropy: Shape `(*spatial)`, in nats.
        variance: The same shape.
        is_foreground: Where the delivered segmentation has any foreground, the same shape.
    """
    place = is_foreground if is_foreground.any() else np.ones_like(is_foreground)
    return MapSummary(
        mean_entropy=float(entropy[place].mean(dtype=float)),
        max_entropy=float(entropy.max()),
        mean_variance=float(variance[place].mean(dtype=float)),
        num_segmented=int(is_foreground.sum()),
    )
