"""Scores of a case's uncertainty against its ground truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.selection import candidate_dice
from nnunetv2_mapo.tools.uncertainty.calibration import (
    area_under_risk_coverage,
    expected_calibration_error,
    smallest_area,
)
from nnunetv2_mapo.tools.uncertainty.maps import Maps

_Segmentation = NDArray[np.integer]


class Scores(NamedTuple):
    """Scores of a case; voxels with the ignore label count nowhere: NaN where there is no other.

    Attributes:
        dice: Mean over the classes or regions present, as `candidate_dice`.
        ece: Expected calibration error over all voxels; of regions the mean over the regions.
        ece_foreground: The same over the voxels that are foreground in the delivered segmentation
            or the ground truth, of regions over those of each region; NaN where there is none.
        aurc: Area under the risk-coverage curve of the voxels, ordered by entropy.
        aurc_random: The same of a random order: the share of wrong voxels.
        aurc_best: The same of the best order: every correct voxel before the first wrong one.
    """

    dice: float
    ece: float
    ece_foreground: float
    aurc: float
    aurc_random: float
    aurc_best: float


class Judged(NamedTuple):
    """Judged voxels: of classes one row, of regions one row a region, shape `(rows, n)`.

    Attributes:
        confidence: Mean probability of the delivered value.
        is_correct: Whether the delivered value is the ground truth's.
        is_foreground: Whether either is foreground.
    """

    confidence: NDArray[np.floating]
    is_correct: NDArray[np.bool_]
    is_foreground: NDArray[np.bool_]


def score_case(
    maps: Maps, segmentation: _Segmentation, truth: _Segmentation, labels: Labels
) -> Scores:
    """Score a case.

    Args:
        maps: Its maps.
        segmentation: Delivered segmentation in nnU-Net's labels, shape `(z, y, x)`.
        truth: Ground truth, the same shape.
        labels: Meaning of the network's heads.

    Raises:
        ValueError: The shapes differ.
    """
    if segmentation.shape != truth.shape:
        message = f"it has the shape {truth.shape}, its segmentation {segmentation.shape}"
        raise ValueError(message)
    true = torch.from_numpy(truth.astype(np.int16))
    valid = ~labels.is_ignored(true)
    delivered = labels.target_map(torch.from_numpy(segmentation.astype(np.int16)))
    target = labels.target_map(true)
    dice = candidate_dice(delivered[None], target, labels, valid)
    inside = valid.numpy()
    if not inside.any():
        return Scores(*[float("nan")] * len(Scores._fields))
    judged = judge(
        maps.probabilities[:, inside], delivered.numpy()[inside], target.numpy()[inside], labels
    )
    rows = list(zip(*judged, strict=True))
    is_wrong: NDArray[np.bool_] = np.logical_not(judged.is_correct.all(0))
    return Scores(
        dice=dice.item(),
        ece=_mean([expected_calibration_error(conf, correct) for conf, correct, _ in rows]),
        ece_foreground=_mean(
            [expected_calibration_error(conf[fg], correct[fg]) for conf, correct, fg in rows]
        ),
        aurc=area_under_risk_coverage(maps.entropy[inside], is_wrong),
        aurc_random=float(is_wrong.mean()),
        aurc_best=smallest_area(is_wrong),
    )


def judge(
    probabilities: NDArray[np.floating],
    delivered: NDArray[np.integer],
    target: NDArray[np.integer],
    labels: Labels,
) -> Judged:
    """Judge voxels.

    Args:
        probabilities: Mean probabilities, shape `(C, n)`.
        delivered: Label map of the delivered segmentation, shape `(n,)`.
        target: Label map of the ground truth, shape `(n,)`.
        labels: Meaning of the label maps.
    """
    if labels.regions is None:
        confidence = np.take_along_axis(probabilities, delivered[None].astype(int), 0)
        is_foreground = (delivered > 0) | (target > 0)
        return Judged(confidence, (delivered == target)[None], is_foreground[None])
    bits = np.arange(labels.num_heads)[:, None]
    ours, true = ((each >> bits) & 1 == 1 for each in (delivered, target))
    return Judged(np.where(ours, probabilities, 1 - probabilities), ours == true, ours | true)


def _mean(values: list[float]) -> float:
    """Mean of those that are numbers; NaN if none is."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
