"""Metrics as scores, by which segmentations can be ranked: each in [0, 1], 1 is perfect.

Distances and volumes, of which less is better, become s / (s + x) with a scale s: 1 at 0, one half
at s. So a difference means about the same in each, and none outweighs the others in a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from nnunetv2_mapo.metrics import lesions, overlap, skeletons, surfaces
from nnunetv2_mapo.metrics.change import Change, Mask, Measured
from nnunetv2_mapo.support.functions import import_function

SCALE_HD95_MM = 10.0
SCALE_ASD_MM = 2.0
SCALE_VOLUME_ML = 1.0
Function = Callable[[Mask, Mask, tuple[float, ...]], float]


class Score(NamedTuple):
    """A score: what measures two masks, and the score by what that counts."""

    measure: Callable[[Mask, Mask, Sequence[float]], Measured]
    score: Callable[[Any], float]
    needs_all: bool = False  # of a sample; else empty borders around both masks change nothing


class Whole:
    """A user's own function, which is asked about the whole sample for each change."""

    def __init__(
        self, function: Function, prediction: Mask, target: Mask, spacing_mm: Sequence[float]
    ) -> None:
        self._prediction, self._target = prediction, target
        self._measure = partial(_call, function, target=target, spacing_mm=tuple(spacing_mm))

    @property
    def counts(self) -> float:
        """What the function says; it is not asked before, for both masks may be empty."""
        return self._measure(self._prediction)

    def counts_with(self, change: Change) -> float:
        """What the function says of the prediction with the change."""
        changed = self._prediction.copy()
        changed[change.box] = change.mask
        return self._measure(changed)


def _call(
    function: Function, prediction: Mask, target: Mask, spacing_mm: tuple[float, ...]
) -> float:
    masks = prediction.view(), target.view()
    for mask in masks:
        mask.flags.writeable = False  # they are asked about again
    value = float(function(*masks, spacing_mm))
    if not math.isfinite(value):
        message = (
            f"{function.__module__}:{function.__name__} is {value} for {int(prediction.sum())} "
            f"voxels where {int(target.sum())} are right: a metric must be finite wherever one of "
            "both masks has a voxel. Mend it; a training goes on with --c."
        )
        raise ValueError(message)
    return value


def _falling(value: float, scale: float) -> float:
    return scale / (scale + value)


def _false_volume(counts: lesions.LesionCounts) -> float:
    volume_ml = lesions.false_positive_volume_ml(counts) + lesions.false_negative_volume_ml(counts)
    return _falling(volume_ml, SCALE_VOLUME_ML)


def named_scores(tolerance_mm: float) -> dict[str, Score]:
    """Score of each name; the tolerance is that of NSD."""
    nsd = partial(surfaces.nsd, tolerance_mm=tolerance_mm)
    return {
        "dice": Score(overlap.Overlap, overlap.dice),
        "nsd": Score(surfaces.Surfaces, nsd),
        "hd95": Score(surfaces.Surfaces, lambda d: _falling(surfaces.hd95_mm(d), SCALE_HD95_MM)),
        "asd": Score(surfaces.Surfaces, lambda d: _falling(surfaces.asd_mm(d), SCALE_ASD_MM)),
        "lesion_f1": Score(lesions.Lesions, lesions.lesion_f1),
        "lesion_dice": Score(lesions.Lesions, lesions.lesion_dice),
        "cldice": Score(skeletons.Skeletons, skeletons.cl_dice),
        "false_volume": Score(lesions.Lesions, _false_volume),
    }


def find_score(name: str, tolerance_mm: float) -> Score:
    """Score of a name of `named_scores`, or of a user's own `"package.module:function"`.

    Raises:
        ImportError, AttributeError: There is no such module or function.
    """
    if ":" not in name:
        return named_scores(tolerance_mm)[name]
    return Score(partial(Whole, import_function(name)), float, needs_all=True)
