"""The steps of `uncertainty`: segment as nnU-Net does, sample, write maps, rank the cases."""

from __future__ import annotations

import json
import multiprocessing
import re
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.inference.data_iterators import preprocessing_iterator_fromfiles
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray

from nnunetv2_mapo import __version__
from nnunetv2_mapo.method.cases import labels_of
from nnunetv2_mapo.support.errors import CommandError, InputError
from nnunetv2_mapo.support.files import WriteError, write_atomically
from nnunetv2_mapo.support.memory import is_out_of_memory
from nnunetv2_mapo.support.randomness import seeded
from nnunetv2_mapo.tools import models
from nnunetv2_mapo.tools.device import choose_device
from nnunetv2_mapo.tools.evaluate.case_metrics import EvaluationError, read_segmentation
from nnunetv2_mapo.tools.uncertainty import FOLDER
from nnunetv2_mapo.tools.uncertainty.dropout_statistics import TOO_LITTLE_MEMORY, sample_with
from nnunetv2_mapo.tools.uncertainty.inputs import find_cases
from nnunetv2_mapo.tools.uncertainty.maps import make_maps, write_map
from nnunetv2_mapo.tools.uncertainty.scores import Scores, area_of_order, rank, score_case

_TABLE, _SETTINGS = "uncertainty.csv", "uncertainty.json"
_NOT_ASKED = ("run", "print_completion")  # arguments that are not of this sub-command
_NUM_SHOWN = 5  # most uncertain cases
_NOT_MAPO = (
    "NOTE: nothing in the checkpoint says that MAPO trained this network. Unless it was trained "
    "with dropout, the maps show how fragile it is, not which segmentations it holds for possible."
)


def run_uncertainty(arguments: Namespace) -> None:
    """Run the sub-command from its parsed command line.

    Raises:
        CommandError: The model or the images cannot be used, or memory or disk do not suffice.
    """
    folder = arguments.output / FOLDER
    try:
        predictor, mapo = open_model(arguments)
        cases, ending = find_cases(arguments, predictor), predictor.dataset_json["file_ending"]
        print_notes(arguments.rate, mapo, len(predictor.configuration_manager.patch_size))
        delete_earlier(folder, [arguments.output / f"{name}{ending}" for name in cases])
        table = rank(map_cases(arguments, cases, predictor, mapo or {}))
        asked = {name: value for name, value in vars(arguments).items() if name not in _NOT_ASKED}
        settings = {"nnunetv2_mapo": __version__, **asked, "mapo": mapo}
        write_atomically(folder / _SETTINGS, json.dumps(settings, indent=1, default=str).encode())
        write_atomically(folder / _TABLE, table.to_csv(index_label="case").encode())
    except (models.ModelError, InputError, EvaluationError, WriteError, OSError) as error:
        raise CommandError(str(error)) from error
    except RuntimeError as error:
        text = str(error)
        if not (is_out_of_memory(error) or re.search(f"{TOO_LITTLE_MEMORY}|worker.* died", text)):
            raise
        message = f"{text} Free memory, use fewer processes (-npp, -nps) or take -device cpu."
        raise CommandError(message) from error
    print(f"\n{describe(table)}\nWritten: {_TABLE} and the maps in {folder}")


def open_model(arguments: Namespace) -> tuple[nnUNetPredictor, dict[str, Any] | None]:
    """Open the model as nnUNetv2_predict does.

    Returns:
        nnU-Net's predictor, and the settings of MAPO if all folds were trained with it.

    Raises:
        ModelError: The model, a fold or a checkpoint is missing or damaged.
        CommandError: PyTorch does not see the device.
    """
    folder, name = models.model_folder(arguments), arguments.checkpoint
    paths = [models.find_checkpoint(folder, fold, name) for fold in arguments.folds]
    settings = [models.read_model(path).get("mapo", {}).get("config") for path in paths]
    device = choose_device(arguments.device)
    # As nnUNetv2_predict: the last bits of a convolution depend on the number of threads.
    torch.set_num_threads(multiprocessing.cpu_count() if device.type == "cpu" else 1)
    predictor = nnUNetPredictor(use_mirroring=not arguments.disable_tta, device=device)
    models.load_folds(predictor, folder, arguments.folds, name)
    return predictor, settings[0] if all(settings) else None


def print_notes(rate: float, mapo: dict[str, Any] | None, num_dimensions: int) -> None:
    """Print what a reader of the maps must know of the samples."""
    largest = max((mapo or {}).get(f"rates_{num_dimensions}d", ()), default=1.0)
    if rate == 0:
        print("NOTE: rate 0 is the plain network: one sample, the entropy of its softmax.")
    elif mapo is None:
        print(_NOT_MAPO)
    elif rate > largest:
        print(f"NOTE: the model was trained with dropout rates up to {largest}, not {rate}.")


def delete_earlier(folder: Path, segmentations: Iterable[Path]) -> None:
    """Delete what an earlier run has left, so that nothing there is of another model or rate."""
    maps = [path for name in ("entropy", "variance") for path in folder.glob(f"*_{name}.nii.gz")]
    for path in (*segmentations, *maps, folder / _TABLE, folder / _SETTINGS):
        path.unlink(missing_ok=True)


def map_cases(
    arguments: Namespace,
    cases: dict[str, list[str]],
    predictor: nnUNetPredictor,
    mapo: dict[str, Any],
) -> dict[str, Scores]:
    """Segment cases as nnUNetv2_predict does, then sample each, write its maps and score it."""
    ending, plans = predictor.dataset_json["file_ending"], predictor.plans_manager
    labels, reader = labels_of(predictor.label_manager), plans.image_reader_writer_class
    output, stage = arguments.output, arguments.prev_stage_predictions
    predictor.predict_from_files(
        str(arguments.input), str(output), num_processes_preprocessing=arguments.npp,
        num_processes_segmentation_export=arguments.nps,
        folder_with_segs_from_prev_stage=stage and str(stage),
    )  # fmt: skip
    preprocessed = preprocessing_iterator_fromfiles(
        [*cases.values()], [str(stage / f"{name}{ending}") for name in cases] if stage else None,
        None, plans, predictor.dataset_json, predictor.configuration_manager, arguments.npp,
        predictor.device.type == "cuda",
    )  # fmt: skip
    rate, num_samples = arguments.rate, arguments.samples if arguments.rate else 1
    scores = {}
    with sample_with(predictor, labels, mapo, num_samples=num_samples, rate=rate) as sample:
        for name, item in zip(cases, preprocessed, strict=True):
            print(f"\nMaps of {name}:", flush=True)
            # By the case alone: its maps do not depend on which cases there are and their order.
            with seeded(f"uncertainty/{name}", predictor.device):
                statistics = sample(item["data"])
            maps = make_maps(statistics, item["data_properties"], predictor)
            for kind, volume in (("entropy", maps.entropy), ("variance", maps.variance)):
                path = output / FOLDER / f"{name}_{kind}.nii.gz"
                write_map(volume, item["data_properties"], reader, path)
            segmentation = read_labels(output / f"{name}{ending}", reader)
            truth = arguments.labels and read_labels(arguments.labels / f"{name}{ending}", reader)
            scores[name] = score_case(maps, segmentation, truth, labels)
    return scores


def read_labels(path: Path, reader: Any) -> NDArray[np.int16]:
    """Labels of a file by nnU-Net's reader, shape `(z, y, x)`."""
    return read_segmentation(str(path), reader).labels.astype(np.int16)


def describe(table: pd.DataFrame) -> str:
    """The first cases of a ranked table, the mean of all, and what the order is worth."""
    mean = table.mean()
    shown = pd.concat([table.head(_NUM_SHOWN), mean.to_frame(f"mean of {len(table)}").T])
    shown = shown.astype({"num_segmented": int})
    text = f"Most uncertain cases:\n{shown.to_string(float_format='{:.4f}'.format)}"
    if "dice" not in table:
        return text
    return (
        f"{text}\nAURC of the cases by mean entropy, risk = 1 - Dice: {area_of_order(table):.4f} "
        f"(random order: {1 - mean['dice']:.4f})"
    )
