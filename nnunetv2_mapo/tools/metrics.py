"""Metrics of one class of one case: overlap, distances of the surfaces, volume. Reads nothing.

The distances are MONAI's, between *edge voxels*: voxels of a mask with a face neighbour outside it
or outside the image. What masks without a voxel get, after ignored voxels were taken out of both,
says `EMPTY_MASKS`: the diagonal is longer than any distance in the image, because leaving failures
out would favour the method that fails.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunetv2_mapo.metrics import lesions
from nnunetv2_mapo.metrics.skeletons import Skeletons, cl_dice

Mask = NDArray[np.bool_]

EMPTY_MASKS = (
    "both empty: every metric NaN, left out of means; one empty: Dice, IoU, NSD 0, ASD and HD95 "
    "the diagonal of the image, relative_volume_error -1 (prediction empty) or NaN (reference "
    "empty)"
)


class Metric(NamedTuple):
    """What a metric is.

    Attributes:
        name: Key in every table and file.
        unit: Entry of an evaluation's provenance that names its unit: `"unit"` (of lengths) or
            `"volume_unit"`; empty where it has none.
        higher_is_better: None where the best value is 0 and the sign tells the direction.
        definition: In one line.
        group: What has to be asked for, one of `GROUPS`; empty for what is always computed.
    """

    name: str
    unit: str
    higher_is_better: bool | None
    definition: str
    group: str = ""


GROUPS = ("lesions", "cldice")
_ALL = "components with all neighbours"
# fmt: off
METRICS = {metric.name: metric for metric in (
    Metric("Dice", "", True, "2 |P & R| / (|P| + |R|), nnU-Net's"),
    Metric("IoU", "", True, "|P & R| / |P or R|, nnU-Net's"),
    Metric("ASD", "unit", False,
           "mean distance of the edge voxels of both masks to the nearest of the other mask"),
    Metric("HD95", "unit", False,
           "larger of the two directions' 95th percentiles of these distances"),
    Metric("NSD", "", True, "share of the edge voxels of both masks within the tolerance"),
    Metric("volume_error", "volume_unit", None, "volume of P - volume of R"),
    Metric("relative_volume_error", "", None, "(volume of P - volume of R) / volume of R"),
    Metric("lesion_F1", "", True,
           f"found / (found + (missed + false) / 2), {_ALL}, found by any voxel (ISLES'22)",
           "lesions"),
    Metric("lesion_precision", "", True, "found / (found + false); 0 if P is empty", "lesions"),
    Metric("lesion_recall", "", True, "found / (found + missed); NaN if R is empty", "lesions"),
    Metric("lesion_Dice", "", True,
           "mean Dice of R's lesions with those of P that touch each, and of false ones, 0",
           "lesions"),
    Metric("false_positive_volume", "volume_unit", False, "volume of false lesions of P",
           "lesions"),
    Metric("false_negative_volume", "volume_unit", False, "volume of missed lesions of R",
           "lesions"),
    Metric("clDice", "", True, "harmonic mean of the shares of each skeleton in the other mask",
           "cldice"),
)}
# fmt: on
BASIC = [name for name, metric in METRICS.items() if not metric.group]


class MaskMetrics(NamedTuple):
    """Value of each metric, in the order of `BASIC`.

    ASD and HD95 are in the unit of the spacing, the signed volume error in that of
    `Grid.voxel_volume`; the others have none.
    """

    dice: float
    iou: float
    asd: float
    hd95: float
    nsd: float
    volume_error: float
    relative_volume_error: float


class Grid(NamedTuple):
    """Geometry of an image.

    Attributes:
        spacing: Distance of neighbouring voxels along each of the two or three axes, in mm or px.
        voxel_volume: Volume of a voxel, in ml or px.
    """

    spacing: tuple[float, ...]
    voxel_volume: float


def compute_metrics(
    prediction: Mask,
    reference: Mask,
    grid: Grid,
    *,
    tolerance: float,
    ignored: Mask | None = None,
) -> MaskMetrics:
    """Metrics of a class.

    Args:
        prediction: Shape `(y, x)` or `(z, y, x)`.
        reference: The same shape.
        grid: Spacing and volume of the voxels.
        tolerance: Distance up to which NSD takes an edge voxel for right, in the spacing's unit.
        ignored: Voxels that count nowhere, the same shape. They leave both masks before surfaces
            are taken, so their border is never a surface of only one of two masks that agree.

    Returns:
        Empty masks have the values that `EMPTY_MASKS` says.
    """
    if ignored is not None:
        prediction, reference = prediction & ~ignored, reference & ~ignored
    num_predicted, num_reference = int(prediction.sum()), int(reference.sum())
    if num_predicted == num_reference == 0:
        return MaskMetrics(*[math.nan] * len(BASIC))
    num_common = int((prediction & reference).sum())
    if num_predicted and num_reference:
        asd, hd95, nsd = _measure_surfaces(prediction, reference, grid.spacing, tolerance)
    else:
        asd = hd95 = math.hypot(*np.multiply(reference.shape, grid.spacing))  # the diagonal
        nsd = 0.0
    excess = num_predicted - num_reference
    return MaskMetrics(
        dice=2 * num_common / (num_predicted + num_reference),
        iou=num_common / (num_predicted + num_reference - num_common),
        asd=asd,
        hd95=hd95,
        nsd=nsd,
        volume_error=excess * grid.voxel_volume,
        relative_volume_error=excess / num_reference if num_reference else math.nan,
    )


def compute_groups(
    prediction: Mask,
    reference: Mask,
    grid: Grid,
    groups: Collection[str],
    ignored: Mask | None = None,
) -> dict[str, float]:
    """Metrics of a class that are asked for by their groups, by name; others as `compute_metrics`.

    All are NaN where both masks are empty.
    """
    names = [name for name, metric in METRICS.items() if metric.group in groups]
    if not names:
        return {}
    if ignored is not None:
        prediction, reference = prediction & ~ignored, reference & ~ignored
    boxes = find_objects((prediction | reference).astype(np.int8))
    if not boxes:
        return dict.fromkeys(names, math.nan)
    ours, true = (np.ascontiguousarray(mask[boxes[0]]) for mask in (prediction, reference))
    found = {}
    if "lesions" in groups:
        counts = lesions.count_lesions(ours, true, grid.spacing)
        counts = counts._replace(voxel_ml=grid.voxel_volume)
        found = {
            "lesion_F1": lesions.lesion_f1(counts),
            "lesion_precision": lesions.lesion_precision(counts) if ours.any() else 0.0,
            "lesion_recall": lesions.lesion_recall(counts),
            "lesion_Dice": lesions.lesion_dice(counts),
            "false_positive_volume": lesions.false_positive_volume_ml(counts),
            "false_negative_volume": lesions.false_negative_volume_ml(counts),
        }
    if "cldice" in groups:
        found["clDice"] = cl_dice(Skeletons(ours, true, grid.spacing).counts)
    return found


def _measure_surfaces(
    prediction: Mask, reference: Mask, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float, float]:
    """ASD, HD95 and NSD of two masks that are not empty, by MONAI."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    # MONAI crops as well, but after it has made 32-bit numbers of the whole image.
    [box] = find_objects((prediction | reference).astype(np.int8))
    y_pred, y = (torch.from_numpy(m[box].copy())[None, None] for m in (prediction, reference))
    with warnings.catch_warnings():
        # MONAI 1.5 and 1.6 warn of an argument that they pass to themselves.
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        asd = compute_average_surface_distance(
            y_pred, y, include_background=True, symmetric=True, spacing=spacing
        )
        hd95 = compute_hausdorff_distance(
            y_pred, y, include_background=True, percentile=95, spacing=spacing
        )
        nsd = compute_surface_dice(y_pred, y, [tolerance], include_background=True, spacing=spacing)
    return asd.item(), hd95.item(), nsd.item()
