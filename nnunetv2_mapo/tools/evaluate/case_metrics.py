"""Metrics of every class of one case from its files, read by nnU-Net's readers."""

from __future__ import annotations

import math
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key, region_or_label_to_mask
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunetv2_mapo import __version__
from nnunetv2_mapo.metrics.lesions import ML_PER_MM3
from nnunetv2_mapo.tools.metrics import (
    BASIC,
    EMPTY_MASKS,
    METRICS,
    Grid,
    compute_groups,
    compute_metrics,
)

SPACING_OF_2D_FILES = 999  # times the largest other one: nnU-Net's spacing of the axis they lack


class EvaluationError(RuntimeError):
    """What cannot be evaluated; the message says why and what to do."""


class CaseFiles(NamedTuple):
    """Where the segmentations of a case are."""

    reference: str
    prediction: str


class Segmentation(NamedTuple):
    """A segmentation as nnU-Net reads it.

    Attributes:
        labels: Shape `(z, y, x)`; z is 1 for 2D files.
        spacing: Of the three axes, in mm.
    """

    labels: NDArray[Any]
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """What is the same for every case of a data set.

    Attributes:
        reader: nnU-Net's reader of the files.
        classes: Label, or labels of a region, of each foreground class.
        ignore_label: Label of the reference whose voxels count nowhere; None if there is none.
        tolerance: Of NSD, in mm or px.
        groups: Of metrics that are asked for, of `metrics.GROUPS`.
    """

    reader: type[BaseReaderWriter]
    classes: tuple[int | tuple[int, ...], ...]
    ignore_label: int | None
    tolerance: float
    groups: tuple[str, ...] = ()

    @property
    def in_pixels(self) -> bool:
        """Whether the files have no spacing."""
        return issubclass(self.reader, NaturalImage2DIO)


def make_task(dataset_json: dict[str, Any], example: Path, tolerance: float) -> Task:
    """Task of nnU-Net's `dataset.json` and one of the files; the tolerance is in mm or px.

    Raises:
        EvaluationError: The data set's description or the file cannot be used.
    """
    try:
        labels = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
        with redirect_stderr(StringIO()):  # nnU-Net prints a traceback for each reader that fails
            reader = determine_reader_writer_from_dataset_json(
                dataset_json, str(example), verbose=False
            )
    except (AssertionError, RuntimeError) as error:
        message = f"{example} cannot be read, or dataset.json has no usable labels: {error}"
        raise EvaluationError(message) from error
    classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    return Task(reader, tuple(classes), labels.ignore_label, tolerance)


def describe(task: Task) -> dict[str, str]:
    """Provenance of what `task` computes."""
    packages = ("nnunetv2", "monai", "torch", "scipy", "numpy")
    versions = [f"nnunetv2-mapo {__version__}", *(f"{name} {version(name)}" for name in packages)]
    length, volume = ("px", "px") if task.in_pixels else ("mm", "ml")
    ignored = f"{task.ignore_label}: where the reference has it, both masks are empty"
    return {
        "implementation": f"MONAI {version('monai')}, edge voxels",
        "versions": ", ".join(versions),
        "reader": task.reader.__name__,
        "unit": length,
        "volume_unit": volume,
        "tolerance": f"{task.tolerance} {length}",
        "empty_masks": EMPTY_MASKS,
        "ignore_label": "none" if task.ignore_label is None else ignored,
        **{
            name: metric.definition
            for name, metric in METRICS.items()
            if metric.group in ("", *task.groups)
        },
    }


def evaluate_case(files: CaseFiles, task: Task) -> dict[str, dict[str, float]]:
    """Metrics of a case.

    Returns:
        Class as nnU-Net's `summary.json` writes it -> name of `METRICS` -> value.

    Raises:
        EvaluationError: A file cannot be read, or the two do not fit each other.
    """
    prediction = read_segmentation(files.prediction, task.reader)
    advice = (
        "evaluate predictions in the geometry of the ground truth, as nnUNetv2_predict writes "
        "them, or name another ground truth with --labels"
    )
    reference = read_truth(files, prediction, task.reader, advice)
    shape, grid = find_grid(reference, in_pixels=task.in_pixels)
    ignored = None
    if task.ignore_label is not None:
        ignored = (reference.labels == task.ignore_label).reshape(shape)
    metrics = {}
    for label in task.classes:
        masks = (region_or_label_to_mask(s.labels, label) for s in (prediction, reference))
        prediction_mask, reference_mask = (mask.reshape(shape) for mask in masks)
        values = compute_metrics(
            prediction_mask, reference_mask, grid, tolerance=task.tolerance, ignored=ignored
        )
        metrics[label_or_region_to_key(label)] = {
            **dict(zip(BASIC, values, strict=True)),
            **compute_groups(prediction_mask, reference_mask, grid, task.groups, ignored),
        }
    return metrics


def read_segmentation(path: str, reader: type[BaseReaderWriter]) -> Segmentation:
    """Read a segmentation with nnU-Net's reader.

    Raises:
        EvaluationError: It cannot be read.
    """
    try:
        labels, properties = reader().read_seg(path)
    except Exception as error:  # each image library has its own
        message = f"{path} cannot be read ({type(error).__name__}: {error})."
        raise EvaluationError(message) from error
    return Segmentation(labels[0], tuple(map(float, properties["spacing"])))


def read_truth(
    files: CaseFiles, prediction: Segmentation, reader: type[BaseReaderWriter], advice: str
) -> Segmentation:
    """Read the ground truth of what was read already, which must have its geometry.

    Args:
        files: Where both are.
        prediction: A segmentation, or the image that is to be segmented.
        reader: nnU-Net's reader of the files.
        advice: What to do if the geometries differ.

    Raises:
        EvaluationError: It cannot be read, or has another shape or spacing.
    """
    reference = read_segmentation(files.reference, reader)
    if issubclass(reader, Tiff3DIO) and not Path(files.reference).with_suffix(".json").exists():
        # nnU-Net copies the ground truth to gt_segmentations without the file of its spacing.
        reference = reference._replace(spacing=prediction.spacing)
    if prediction.labels.shape != reference.labels.shape:
        what, theirs = "shape", (prediction.labels.shape, reference.labels.shape)
    elif not np.allclose(prediction.spacing, reference.spacing, rtol=1e-3):
        what, theirs = "spacing", (prediction.spacing, reference.spacing)
    else:
        return reference
    message = (
        f"{files.prediction} has the {what} {theirs[0]}, but its ground truth {files.reference} "
        f"has {theirs[1]}: {advice}."
    )
    raise EvaluationError(message)


def find_grid(segmentation: Segmentation, *, in_pixels: bool) -> tuple[tuple[int, ...], Grid]:
    """Shape and grid in which a case is evaluated: 2D if an axis has the length 1.

    A single slice of a 3D file keeps its thickness for its volume; a 2D file has none in nnU-Net
    and counts as 1 mm thick.
    """
    shape, spacing = segmentation.labels.shape, segmentation.spacing
    thickness = spacing[0]
    if shape[0] == 1 and math.isclose(thickness, SPACING_OF_2D_FILES * max(spacing[1:])):
        thickness = 1.0
    volume = 1.0 if in_pixels else thickness * math.prod(spacing[1:]) * ML_PER_MM3
    if 1 in shape:
        dropped = shape.index(1)
        shape = shape[:dropped] + shape[dropped + 1 :]
        spacing = spacing[:dropped] + spacing[dropped + 1 :]
    return shape, Grid(spacing, volume)
