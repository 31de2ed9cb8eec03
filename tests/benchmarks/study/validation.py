"""Metrics of the validation cases of a finished training."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from nnunetv2_mapo.tools.metrics import BASIC, GROUPS, Grid, compute_groups, compute_metrics

from .results import KEPT


class CaseMetrics(NamedTuple):
    """Metrics of each case; NaN where the class is neither predicted nor there.

    Attributes:
        names: Case identifiers.
        values: Metric -> class -> value of each case, in the order of the names.
    """

    names: list[str]
    values: dict[str, dict[int, list[float]]]


def evaluate_validation_cases(trainer: Any, dataset: Any) -> CaseMetrics:
    """Predict each case with nnU-Net's sliding window and compare it, as preprocessed."""
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=trainer.device.type == "cuda",
        device=trainer.device,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        None,
    )
    classes = trainer.label_manager.foreground_labels
    spacing = tuple(map(float, trainer.configuration_manager.spacing))
    cases = []
    for name in dataset.identifiers:
        image, reference, _, _ = dataset.load_case(name)
        with torch.inference_mode():
            logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image))
            predicted = trainer.label_manager.convert_logits_to_segmentation(logits.float().cpu())
        metrics = evaluate_case(
            np.asarray(predicted), reference[0], spacing, classes, tolerance=trainer.tolerance
        )
        cases.append(metrics)
    compute_gaussian.cache_clear()
    values = {
        metric: {label: [case[label][metric] for case in cases] for label in classes}
        for metric in KEPT
    }
    return CaseMetrics(list(dataset.identifiers), values)


def evaluate_case(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, ...],
    classes: list[int],
    *,
    tolerance: float,
) -> dict[int, dict[str, float]]:
    """Metrics of each class of a case; the arrays have three axes, the first of length 1 in 2D."""
    if len(spacing) == 2:
        predicted, reference = predicted[0], reference[0]
    grid = Grid(spacing, math.prod(spacing))
    found = {}
    for label in classes:
        masks = predicted == label, reference == label
        values = compute_metrics(*masks, grid, tolerance=tolerance)
        found[label] = dict(zip(BASIC, values, strict=True))
        found[label] |= compute_groups(*masks, grid, GROUPS)
    return found
