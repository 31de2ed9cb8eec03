"""Uncertainty of many segmentations of one image, and whether it tells where they are wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import entr

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.selection import candidate_dice

_Array = NDArray[np.floating]
NUM_BINS = 15  # of Guo et al., arXiv:1706.04599


class Maps(NamedTuple):
    """What the samples of a case say, in the geometry of its image as nnU-Net reads it."""

    probabilities: _Array  # mean of each class or region, shape `(C, z, y, x)`
    entropy: _Array  # predictive entropy in nats, shape `(z, y, x)`
    variance: _Array  # vote variance, the same shape


def predictive_entropy(probabilities: _Array, *, has_regions: bool = False) -> _Array:
    """Entropy in nats of the samples' mean probabilities, shape `(C, *spatial)`, in each voxel.

    −Σ p ln p, from 0 to ln C; 0 ln 0 is 0. Of regions, which may overlap, the sum of the entropies
    of binary problems, Σ −p ln p − (1 − p) ln(1 − p), to C ln 2.
    """
    entropy: _Array = entr(_with_complements(probabilities, has_regions)).sum(0)
    return entropy


def vote_variance(shares: _Array, *, has_regions: bool = False) -> _Array:
    """Variance of the votes in each voxel from the share p of each class, shape `(C, *spatial)`.

    ½ Σ p (1 − p), below 0.5: for two classes the variance p (1 − p) of a binary segmentation, for
    more half the probability that two votes, drawn with replacement, differ. Of regions it is
    Σ p (1 − p), at most C / 4.
    """
    p = _with_complements(shares, has_regions)
    variance: _Array = (p * (1 - p)).sum(0) / 2
    return variance


def measure_undecided(labels: Labels) -> dict[str, float]:
    """Entropy and variance of a voxel of which every class is as likely, the largest there are."""
    has_regions = labels.regions is not None
    shares = np.full((labels.num_heads, 1), 0.5 if has_regions else 1 / labels.num_heads)
    return {
        "entropy": float(predictive_entropy(shares, has_regions=has_regions)[0]),
        "variance": float(vote_variance(shares, has_regions=has_regions)[0]),
    }


def _with_complements(p: _Array, has_regions: bool) -> _Array:
    """Of regions both values of each one, on and off; of classes as they are."""
    return np.concatenate([p, 1 - p]) if has_regions else p


def expected_calibration_error(
    confidence: _Array, is_correct: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> float:
    """Expected calibration error of n voxels, in [0, 1] (Guo et al., arXiv:1706.04599, eq. 3).

    Mean over all voxels of |mean confidence − share of correct voxels| of their bin; of B bins, bin
    b holds confidences in ((b − 1) / B, b / B], the first one 0 as well. NaN where n is 0.

    Args:
        confidence: Probability that the delivered value is right, shape `(n,)`.
        is_correct: Whether it is, shape `(n,)`.
        num_bins: B.
    """
    if not confidence.size:
        return float("nan")
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return float(np.abs(np.bincount(bins, confidence - is_correct)).sum() / confidence.size)


def area_under_risk_coverage(uncertainty: NDArray[Any], risk: NDArray[Any]) -> float:
    """Area under the risk-coverage curve (Geifman et al., arXiv:1805.08206).

    The smaller the better. Items enter from the most certain to the most uncertain one; the curve
    is the mean risk of those that have entered, the area its mean over all items. Items of equal
    uncertainty enter together, because no threshold could part them: each has the mean risk at the
    end of its group. So the area is the mean risk if all are equally uncertain, which is also what
    a random order gives on average. NaN without items.

    Args:
        uncertainty: Of each item, a voxel or a case, finite, shape `(n,)`.
        risk: Of each item: 1 for a wrong voxel and 0 for a correct one; 1 − Dice of a case.
    """
    if not uncertainty.size:
        return float("nan")
    order = np.argsort(uncertainty)
    risks = np.cumsum(risk[order], dtype=float) / np.arange(1, len(order) + 1)
    ends = np.append(np.flatnonzero(np.diff(uncertainty[order])), len(order) - 1)
    return float((risks[ends] * np.diff(ends, prepend=-1)).sum() / len(order))


def score_case(
    maps: Maps, segmentation: NDArray[np.int16], truth: NDArray[np.int16] | None, labels: Labels
) -> dict[str, float]:
    """Row of a case in the table; voxels with the ignore label tell nothing about errors.

    The means are over the segmented foreground or, where nothing is segmented, over the whole
    image, which is another scale. Without a ground truth, or if it is all ignored, they are all.
    Calibration errors of regions are the mean over the regions; `ece_foreground` is over the voxels
    that are foreground in either segmentation, NaN without any.

    Args:
        maps: Its maps.
        segmentation: Delivered segmentation in nnU-Net's labels, shape `(z, y, x)`.
        truth: Ground truth, the same shape; None if it is not known.
        labels: Meaning of the network's heads.
    """
    foreground = segmentation > 0
    place = foreground if foreground.any() else np.ones_like(foreground)
    row = {
        "mean_entropy": float(maps.entropy[place].mean(dtype=float)),
        "mean_variance": float(maps.variance[place].mean(dtype=float)),
        "num_segmented": int(foreground.sum()),
    }
    if truth is None or not (valid := ~labels.is_ignored(torch.from_numpy(truth))).any():
        return row
    delivered, target = (labels.target_map(torch.from_numpy(m)) for m in (segmentation, truth))
    ours, theirs = delivered[valid].numpy(), target[valid].numpy()
    p = maps.probabilities[:, valid.numpy()]
    if labels.regions is None:
        confidence = np.take_along_axis(p, ours[None].astype(int), 0)
        is_correct, is_foreground = (ours == theirs)[None], ((ours > 0) | (theirs > 0))[None]
    else:  # each region as a binary problem of its own
        bits = np.arange(labels.num_heads)[:, None]
        is_on, should_be = ((label_map >> bits) & 1 == 1 for label_map in (ours, theirs))
        confidence = np.where(is_on, p, 1 - p)
        is_correct, is_foreground = is_on == should_be, is_on | should_be
    errors = pd.DataFrame(
        [expected_calibration_error(c, correct), expected_calibration_error(c[fg], correct[fg])]
        for c, correct, fg in zip(confidence, is_correct, is_foreground, strict=True)
    ).mean()  # of those that are numbers
    is_wrong = ~is_correct.all(0)
    return row | {
        "dice": candidate_dice(delivered[None], target, labels, valid).item(),
        "ece": errors[0],
        "ece_foreground": errors[1],
        "aurc": area_under_risk_coverage(maps.entropy[valid.numpy()], is_wrong),
        "aurc_random": float(is_wrong.mean()),
    }


def rank(table: pd.DataFrame) -> pd.DataFrame:
    """The cases of a table, the most uncertain first."""
    return table.loc[_uncertainty(table).sort_values(ascending=False, kind="stable").index]


def _uncertainty(table: pd.DataFrame) -> pd.Series:
    """Mean entropy; above all others' where nothing is segmented, and all is missed or all well."""
    return table["mean_entropy"].where(table["num_segmented"] > 0, np.finfo(float).max)


def describe(table: pd.DataFrame) -> str:
    """The first cases of a ranked table, the mean of all and, with Dice, their AURC."""
    mean = table.mean()
    shown = pd.concat([table.head(), mean.to_frame(f"mean of {len(table)}").T])
    text = shown.astype({"num_segmented": int}).to_string(float_format="{:.4f}".format)
    if "dice" not in table:
        return f"Most uncertain cases:\n{text}"
    judged = table.dropna(subset="dice")
    area = area_under_risk_coverage(_uncertainty(judged).to_numpy(), 1 - judged["dice"].to_numpy())
    return (
        f"Most uncertain cases:\n{text}\nAURC of the cases by mean entropy, risk = 1 - Dice: "
        f"{area:.4f} (random order: {1 - mean['dice']:.4f})"
    )
