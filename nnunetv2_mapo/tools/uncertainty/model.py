"""The model of `uncertainty`, opened as nnUNetv2_predict opens it."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_mapo.method.cases import labels_of
from nnunetv2_mapo.method.dropout_sites import find_dropout_sites
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.tools.device import choose_device
from nnunetv2_mapo.tools.models import (
    ModelError,
    find_checkpoint,
    find_model_folder,
    load_folds,
    read_model,
)
from nnunetv2_mapo.tools.uncertainty.dropout_statistics import Sampling, drops_out

EXPORTED = "mapo_export.json"  # in the folder of an exported model: where it comes from
_NOT_TRAINED_WITH_DROPOUT = (
    "NOTE: nothing in the checkpoint says that this network was trained with dropout. The maps "
    "then show how fragile the network is, not which segmentations it holds for possible. The "
    "segmentations are not affected."
)


@dataclass(frozen=True)
class Model:
    """A model of one or several folds inside nnU-Net's predictor.

    Attributes:
        predictor: As nnUNetv2_predict makes it.
        labels: Meaning of the network's heads.
        folder: Of the model.
        granularity: Of the dropout that it was trained with; else `"element"`.
        include: Patterns of that dropout's further sites.
        exclude: Patterns of modules without it.
        largest_rate: Largest dropout rate that MAPO trained it with; None if that is not known.
        knows_dropout: Whether every fold was trained with dropout, as far as can be told.
    """

    predictor: nnUNetPredictor
    labels: Labels
    folder: Path
    granularity: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    largest_rate: float | None
    knows_dropout: bool


def open_predictor(arguments: argparse.Namespace) -> Model:
    """Open the model as nnUNetv2_predict does.

    Raises:
        ModelError: The model, a fold or a checkpoint is missing or damaged, or there are too many
            regions.
        CommandError: PyTorch does not see the device.
    """
    folder = arguments.model or find_model_folder(
        arguments.dataset, arguments.trainer, arguments.plans, arguments.configuration
    )
    checkpoints = [find_checkpoint(folder, fold, arguments.checkpoint) for fold in arguments.folds]
    configs = [read_model(path).get("mapo", {}).get("config") for path in checkpoints]
    device = choose_device(arguments.device)
    # As nnUNetv2_predict: the last bits of a convolution depend on the number of threads.
    torch.set_num_threads(multiprocessing.cpu_count() if device.type == "cpu" else 1)
    predictor = nnUNetPredictor(
        tile_step_size=arguments.step_size, use_mirroring=not arguments.disable_tta, device=device
    )
    load_folds(predictor, folder, arguments.folds, arguments.checkpoint)
    settings = find_settings(configs, folder, arguments.folds)
    include = tuple(settings.get("dropout_include", ()))
    exclude = tuple(settings.get("dropout_exclude", ()))
    num_heads = predictor.label_manager.num_segmentation_heads
    if not find_dropout_sites(predictor.network, num_heads, include, exclude):
        message = f"The network in {folder} has no layer to drop out: it has no samples."
        raise ModelError(message)
    try:
        labels = labels_of(predictor.label_manager)
    except ValueError as error:
        message = f"{folder} cannot be mapped: {error}"
        raise ModelError(message) from error
    num_dimensions = len(predictor.configuration_manager.patch_size)
    return Model(
        predictor,
        labels,
        folder,
        settings.get("granularity", "element"),
        include,
        exclude,
        max(settings.get(f"rates_{num_dimensions}d", ()), default=None),
        knows_dropout=bool(settings) or drops_out(predictor.network),
    )


def find_settings(
    configs: Sequence[dict[str, Any] | None], folder: Path, folds: Sequence[int | str]
) -> dict[str, Any]:
    """Settings of MAPO that all folds were trained with: the first one's.

    Args:
        configs: Of each fold's checkpoint; None where it has none.
        folder: Of the model, in which an export may have left them.
        folds: Numbers or `"all"`.

    Returns:
        Empty if a fold has none.
    """
    found = [
        config or read_exported(folder / EXPORTED, fold)
        for config, fold in zip(configs, folds, strict=True)
    ]
    return found[0] if all(found) else {}


def read_exported(path: Path, fold: int | str) -> dict[str, Any]:
    """Settings of MAPO that an export has left beside the model; empty where there are none."""
    try:
        return dict(json.loads(path.read_bytes())["folds"][str(fold)]["mapo"] or {})
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def find_sampling(arguments: argparse.Namespace, model: Model) -> Sampling:
    """How to draw samples; says what a reader of the maps must know."""
    if arguments.rate == 0:
        print("NOTE: rate 0 is the plain network: one sample, the entropy of its softmax.")
        return Sampling(1, 0.0, model.granularity, model.include, model.exclude)
    if not model.knows_dropout:
        print(_NOT_TRAINED_WITH_DROPOUT)
    elif model.largest_rate is not None and arguments.rate > model.largest_rate:
        print(
            f"NOTE: the network was trained with dropout rates up to {model.largest_rate}; what "
            f"its samples at {arguments.rate} say was no part of that training."
        )
    return Sampling(
        arguments.samples, arguments.rate, model.granularity, model.include, model.exclude
    )
