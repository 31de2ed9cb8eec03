"""A trainer that leaves no trace, and what a trained model's own one says of its cases."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_mapo.guards.base_checkpoint import read_validated
from nnunetv2_mapo.guards.start import check_preprocessed, check_split
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.rounds import draw_cases
from nnunetv2_mapo.method.store import MANIFEST, MinedRound, read_rounds
from nnunetv2_mapo.support.errors import MAPOError
from nnunetv2_mapo.tools.models import ModelError, TrainedModel

_SPLITS = "splits_final.json"
_RESTORE = "Restore the split that the model was trained with"


class FoldCases(NamedTuple):
    """nnU-Net's datasets of a fold, as its trainer makes them."""

    training: Any
    validation: Any


def make_in_scratch(make: Callable[[], Any], scratch: str, results: Path) -> Any:
    """Make a trainer that reads from nnU-Net's folders and writes to a scratch folder.

    Args:
        make: Makes it.
        scratch: Empty folder for what it writes, also for the split that nnU-Net makes where there
            is none.
        results: `nnUNet_results/DATASET`, in which a cascade's previous stage is looked for.
    """
    with patch.dict(os.environ, {"nnUNet_results": scratch, "nnUNet_wandb_enabled": "0"}):
        trainer = make()
    if trainer.is_cascaded:
        earlier = Path(trainer.folder_with_segs_from_previous_stage)
        real = results / earlier.relative_to(Path(trainer.output_folder_base).parent)
        trainer.folder_with_segs_from_previous_stage = str(real)
    base = Path(trainer.preprocessed_dataset_folder_base)
    if not (base / _SPLITS).is_file():  # nnU-Net writes it, a trainer may read another one there
        for path in filter(Path.is_file, base.glob("*")):
            shutil.copy(path, scratch)
        trainer.preprocessed_dataset_folder_base = scratch
    return trainer


def open_training_cases(model: TrainedModel) -> Any:
    """nnU-Net's dataset of the cases that the model's fold was trained on.

    Raises:
        InputError: As of `open_fold`.
        StoreError: The manifest of a round is damaged.
        ModelError: As of `open_fold`, or the split has changed since the training.
    """
    fold = open_fold(model)
    _check_witnesses(model, *({*map(str, cases.identifiers)} for cases in fold))
    return fold.training


def open_fold(model: TrainedModel) -> FoldCases:
    """Ask the model's own trainer for the cases of its fold.

    Raises:
        InputError: The data set is not preprocessed, or the split is of other cases.
        ModelError: The split is missing or damaged or, in a cascade, the previous stage's
            segmentations are missing.
    """
    if not nnUNet_preprocessed.is_set():
        message = "The environment variable nnUNet_preprocessed is not set."
        raise ModelError(message)
    base = Path(nnUNet_preprocessed.require()) / model.plans_manager.dataset_name
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                make = partial(_make_again, model)
                fold = _ask(model, make_in_scratch(make, scratch, model.folder.parent))
        except MAPOError as error:
            error.args = (str(error).replace(scratch, str(base)),)
            raise
        except Exception as error:  # a trainer's own code may raise anything
            message = (
                f"{model.trainer_name} cannot say which cases fold {model.fold} is trained on "
                f"({type(error).__name__}: {error}): {base / _SPLITS}, or what its own do_split "
                f"reads, is damaged or missing. {_RESTORE}."
            )
            raise ModelError(message.replace(scratch, str(base))) from error
        if Path(scratch, _SPLITS).is_file():  # of now, not of the training
            message = f"{base / _SPLITS} is missing: it says which cases fold {model.fold} has."
            raise ModelError(message)
    return fold


def _make_again(model: TrainedModel) -> Any:
    """The trainer that a model was trained by, as nnU-Net makes it."""
    trainer = recursive_find_trainer_class_by_name(model.trainer_name)
    return trainer(
        plans={**deepcopy(model.plans_manager.plans), "continue_training": False},
        configuration=model.configuration,
        fold=model.fold,
        dataset_json=model.dataset_json,
        device=torch.device("cpu"),
    )


def _ask(model: TrainedModel, trainer: Any) -> FoldCases:
    """Datasets of a trainer that was made, but not initialised: nobody needs its network."""
    folder = trainer.preprocessed_dataset_folder
    check_preprocessed(Path(folder), model.plans_manager.dataset_name, model.configuration)
    previous = trainer.folder_with_segs_from_previous_stage
    if previous is not None and not Path(previous).is_dir():
        message = (
            f"{previous} is missing: {model.configuration} needs the segmentations of "
            f"{model.configuration_manager.previous_stage_name}, which nnU-Net writes at the end "
            "of each of its folds' validation."
        )
        raise ModelError(message)
    trainer.dataset_class = infer_dataset_class(folder)  # what initialize does
    fold = FoldCases(*trainer.get_tr_and_val_datasets())
    training, validation = (list(map(str, cases.identifiers)) for cases in fold)
    available = trainer.dataset_class.get_identifiers(folder)
    source = Path(trainer.preprocessed_dataset_folder_base, _SPLITS)
    check_split(training, validation, available, source)
    return fold


def _check_witnesses(model: TrainedModel, training: set[str], validation: set[str]) -> None:
    """Hold a split against what the training left: its newest pairs, and its validation."""
    fold = model.folder / f"fold_{model.fold}"
    witnesses = {
        mined.folder / MANIFEST: {*_draw_again(mined, training)} ^ {*mined.cases}
        for mined in read_rounds(fold)[-1:]
    }
    validated = read_validated(fold, model.dataset_json["file_ending"]) or set()
    witnesses[fold / "validation/summary.json"] = validated & (training - validation)
    for witness, differing in witnesses.items():
        if differing:
            case = min(differing)
            now = f"is {'a' if case in training else 'no'} training case now"
            message = (
                f"The split of fold {model.fold} has changed since the training: {case} {now}, "
                f"by {witness} it was {'not one' if case in training else 'one'}. {_RESTORE}; if "
                "that file is of an earlier training, delete it."
            )
            raise ModelError(message)


def _draw_again(mined: MinedRound, training: set[str]) -> list[str]:
    """Cases that a round would mine of these training cases."""
    config = MAPOConfig.from_dict(mined.origin["settings"])
    return draw_cases(sorted(training), config, mined.origin["round"])
