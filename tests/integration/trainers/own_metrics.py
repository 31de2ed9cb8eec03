"""Metrics of a user, in a folder of `nnUNet_extTrainer`, which nnU-Net puts on the path."""

import time

import numpy as np


def overlap(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, ...]
) -> np.floating:
    assert prediction.shape == target.shape
    assert prediction.dtype == target.dtype == bool
    assert prediction.ndim == len(spacing_mm)
    return np.float32((prediction & target).sum() / (prediction | target).sum())


def slow(prediction: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, ...]) -> np.floating:
    time.sleep(0.2)
    return overlap(prediction, target, spacing_mm)


def distance(prediction: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    return 1 - float(overlap(prediction, target, spacing_mm))


def undefined(prediction: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    return float("nan") if not prediction.any() else 1.0


def failing(prediction: np.ndarray, target: np.ndarray) -> float:
    return 1.0
