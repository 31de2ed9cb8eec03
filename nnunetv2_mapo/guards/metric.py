"""Can a training rank by its metric? Asked of a training case before the first epoch."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.pairing import spacing_of
from nnunetv2_mapo.method.ranking import Ranking
from nnunetv2_mapo.support.errors import InputError

LONG_S = 0.1  # of a user's function for one case; it is asked about each part of each case
_USUAL_PARTS = 100  # of a case

_SIGNATURE = """It is called as

    def my_metric(prediction, target, spacing_mm):

with two boolean arrays of the axes (y, x) or (z, y, x), the mask of one class in each, of which at
least one has a voxel, and the distance of neighbouring voxels along each axis. It returns a finite
number, higher is better."""


def check_metric(
    config: MAPOConfig,
    labels: Labels,
    spacing_mm: Sequence[float],
    dataset: Any,
) -> list[str]:
    """Hold the metric against its contract on the first training case with foreground.

    Args:
        config: Settings of the training.
        labels: Meaning of the label maps.
        spacing_mm: That of the configuration, two or three axes.
        dataset: nnU-Net's, of the training cases.

    Returns:
        What a user should know, such as that it takes long.

    Raises:
        InputError: It cannot be imported, fails, is not finite, or an empty prediction is not worse
            than a perfect one.
    """
    if config.metric == "dice":
        return []
    name = describe_metric(config)
    try:
        ranking = Ranking.by(config.metric, config.tolerance_mm, labels)
    except Exception as error:  # a user's module may do anything
        message = (
            f"metric={config.metric!r} cannot be imported ({type(error).__name__}: {error}). Put "
            "the folder that holds its module into nnUNet_extTrainer or PYTHONPATH."
        )
        raise InputError(message) from error
    truth = _find_foreground(dataset, labels, num_axes=len(spacing_mm))
    if truth is None:
        return []
    spacing = spacing_of(spacing_mm)[-truth.ndim :]
    perfect, seconds = _measure(ranking, name, truth, truth, spacing)
    nothing = np.zeros_like(truth)
    empty, _ = _measure(ranking, name, nothing, truth, spacing)
    _measure(ranking, name, truth, nothing, spacing)  # must not fail
    if not perfect > empty:
        message = (
            f"{name} says {perfect:g} of a perfect prediction and {empty:g} of an empty one: a "
            "perfect one must have more. If lower is better, return the negative value."
        )
        raise InputError(message)
    return _describe_time(config, name, seconds, truth.shape)


def describe_metric(config: MAPOConfig) -> str:
    """The metric as it is called in messages."""
    if isinstance(config.metric, str):
        return f"metric={config.metric!r}"
    return f"metric={dict(config.metric)!r}"


def _find_foreground(dataset: Any, labels: Labels, *, num_axes: int) -> NDArray[np.integer] | None:
    """Label map of the first case with foreground; in 2D its slice with the most."""
    for identifier in dataset.identifiers:
        segmentation = torch.from_numpy(dataset.load_case(identifier)[1][0])
        truth: NDArray[np.integer] = labels.target_map(segmentation).numpy()
        if truth.any():
            if num_axes == 2:
                return np.ascontiguousarray(truth[int((truth > 0).sum((1, 2)).argmax())])
            return truth
    return None


def _measure(
    ranking: Ranking,
    name: str,
    prediction: NDArray[np.integer],
    target: NDArray[np.integer],
    spacing_mm: Sequence[float],
) -> tuple[float, float]:
    """Value of a prediction, and the seconds that it took."""
    started = time.perf_counter()
    try:
        value = ranking.value(prediction, target, spacing_mm)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = (
            f"{name} fails on a training case ({type(error).__name__}: {error}; {where.filename}, "
            f"line {where.lineno}). {_SIGNATURE}"
        )
        raise InputError(message) from error
    return value, time.perf_counter() - started


def _describe_time(
    config: MAPOConfig, name: str, seconds: float, shape: tuple[int, ...]
) -> list[str]:
    """A notice if a user's function will hold a round up."""
    names = [config.metric] if isinstance(config.metric, str) else [*config.metric]
    if seconds < LONG_S or not any(":" in each for each in names):
        return []
    minutes = seconds * _USUAL_PARTS / 60
    return [
        f"NOTICE: {name} takes {seconds:.2f} s for one case of {shape}. Mining asks it once for "
        f"each part in which candidates differ, often {_USUAL_PARTS} of a case: about "
        f"{minutes:.1f} minutes a case in each round. Make it faster, or take a named metric."
    ]
