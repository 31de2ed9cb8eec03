"""Does an uncertainty tell where a segmentation is wrong? Calibration and risk-coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15  # of Guo et al., arXiv:1706.04599


def expected_calibration_error(
    confidence: NDArray[np.floating], is_correct: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> float:
    """Expected calibration error (Guo et al., arXiv:1706.04599, eq. 3).

    Mean over all voxels of |mean confidence − share of correct voxels| of their bin; of B bins, bin
    b holds confidences in ((b − 1) / B, b / B], the first one 0 as well.

    Args:
        confidence: Probability that the delivered value is right, in [0, 1], shape `(n,)`.
        is_correct: Whether it is, shape `(n,)`.
        num_bins: Number of bins B.

    Returns:
        In [0, 1]; NaN where there is no voxel.
    """
    if not confidence.size:
        return float("nan")
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, confidence, num_bins) - np.bincount(bins, is_correct, num_bins)
    return float(np.abs(gaps).sum() / confidence.size)


def area_under_risk_coverage(uncertainty: NDArray[Any], risk: NDArray[Any]) -> float:
    """Area under the risk-coverage curve (Geifman et al., arXiv:1805.08206).

    Items enter from the most certain to the most uncertain one; the curve is the mean risk of those
    that have entered, the area its mean over all items. Items of equal uncertainty enter together,
    because no threshold could part them: each has the mean risk at the end of its group.

    Args:
        uncertainty: Of each item, a voxel or a case, finite, shape `(n,)`.
        risk: Of each item: 1 for a wrong voxel and 0 for a correct one; 1 − Dice of a case.

    Returns:
        The smaller the better; the mean risk if all items are equally uncertain, which is also
        what a random order gives on average; NaN where there is no item.
    """
    if not uncertainty.size:
        return float("nan")
    order = np.argsort(uncertainty)
    risks = np.cumsum(risk[order], dtype=float) / np.arange(1, len(order) + 1)
    ends = np.append(np.flatnonzero(np.diff(uncertainty[order])), len(order) - 1)
    return float((risks[ends] * np.diff(ends, prepend=-1)).sum() / len(order))
