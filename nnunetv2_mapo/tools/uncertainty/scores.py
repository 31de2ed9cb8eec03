"""Numbers of a case: how uncertain it is and, with its ground truth, whether that tells errors."""

from __future__ import annotations

from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.selection import candidate_dice
from nnunetv2_mapo.tools.uncertainty.calibration import (
    area_under_risk_coverage,
    expected_calibration_error,
)
from nnunetv2_mapo.tools.uncertainty.maps import Maps


class Scores(NamedTuple):
    """Numbers of a case; those of errors are NaN without a ground truth, or if it is all ignored.

    Attributes:
        mean_entropy: Mean over the segmented foreground in nats; over the whole image, which is on
            another scale, where nothing is segmented.
        mean_variance: Mean vote variance over the same voxels.
        num_segmented: Voxels of the segmented foreground.
        dice: Mean over the classes or regions present, as `candidate_dice`.
        ece: Expected calibration error over all voxels; of regions the mean over the regions.
        ece_foreground: The same over the voxels that are foreground in the delivered segmentation
            or the ground truth, of regions over those of each region; NaN where there is none.
        aurc: Area under the risk-coverage curve of the voxels, ordered by entropy.
        aurc_random: The same of a random order: the share of wrong voxels.
    """

    mean_entropy: float
    mean_variance: float
    num_segmented: int
    dice: float = nan
    ece: float = nan
    ece_foreground: float = nan
    aurc: float = nan
    aurc_random: float = nan


def score_case(
    maps: Maps, segmentation: NDArray[np.int16], truth: NDArray[np.int16] | None, labels: Labels
) -> Scores:
    """Score a case; voxels with the ignore label tell nothing about errors.

    Args:
        maps: Its maps.
        segmentation: Delivered segmentation in nnU-Net's labels, shape `(z, y, x)`.
        truth: Ground truth, the same shape; None if it is not known.
        labels: Meaning of the network's heads.
    """
    foreground = segmentation > 0
    place = foreground if foreground.any() else np.ones_like(foreground)
    entropy, variance = (float(m[place].mean(dtype=float)) for m in (maps.entropy, maps.variance))
    scores = Scores(entropy, variance, int(foreground.sum()))
    if truth is None or not (valid := ~labels.is_ignored(torch.from_numpy(truth))).any():
        return scores
    delivered, target = (labels.target_map(torch.from_numpy(m)) for m in (segmentation, truth))
    dice = candidate_dice(delivered[None], target, labels, valid).item()
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
    rows = list(zip(confidence, is_correct, is_foreground, strict=True))
    of_foreground = [expected_calibration_error(row[fg], correct[fg]) for row, correct, fg in rows]
    is_wrong = ~is_correct.all(0)
    return scores._replace(
        dice=dice,
        ece=float(np.mean([expected_calibration_error(row, correct) for row, correct, _ in rows])),
        ece_foreground=float(pd.Series(of_foreground).mean()),  # of those that are numbers
        aurc=area_under_risk_coverage(maps.entropy[valid.numpy()], is_wrong),
        aurc_random=float(is_wrong.mean()),
    )


def rank(scores: dict[str, Scores]) -> pd.DataFrame:
    """Table of the cases, the most uncertain first, without columns that are NaN in all rows."""
    table = pd.DataFrame.from_dict(scores, orient="index", columns=Scores._fields)
    order = _uncertainty(table).sort_values(ascending=False, kind="stable").index
    return table.loc[order].dropna(axis=1, how="all")


def area_of_order(table: pd.DataFrame) -> float:
    """Area under the risk-coverage curve of the cases; risk is 1 − Dice, those without it are out.

    Args:
        table: Of `rank`, with Dice.
    """
    judged = table.dropna(subset="dice")
    return area_under_risk_coverage(_uncertainty(judged).to_numpy(), 1 - judged["dice"].to_numpy())


def _uncertainty(table: pd.DataFrame) -> pd.Series:
    """Mean entropy; above all others' where nothing is segmented, and all is missed or all well."""
    return table["mean_entropy"].where(table["num_segmented"] > 0, np.finfo(float).max)
