"""A training that begins in a scratch folder: what `nnUNetv2_train` does before its first epoch."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from nnunetv2_mapo.guards.base_checkpoint import BaseError
from nnunetv2_mapo.guards.checks import check_preprocessed
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.tools.doctor.dataset import Asked, Prepared
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding, say_command
from nnunetv2_mapo.tools.doctor.folders import RESULTS
from nnunetv2_mapo.trainer import MAPOTrainer


class Rehearsal(NamedTuple):
    """How the beginning of a training went.

    Attributes:
        findings: What was seen.
        training: nnU-Net's dataset of the training cases; None after a problem.
    """

    findings: list[Finding]
    training: Any = None


class _Problem(Exception):  # noqa: N818  # no error of the program: it ends the rehearsal
    """What keeps the training from starting, and what mends it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.finding = Finding(PROBLEM, what, mend)


def rehearse(trainer_class: Any, prepared: Prepared, asked: Asked) -> Rehearsal:
    """Begin a training on the CPU and leave no trace of it.

    Args:
        trainer_class: What nnU-Net finds for the name of the trainer.
        prepared: Data set and configuration.
        asked: Plans, trainer and fold.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            return _begin(_make(trainer_class, prepared, asked, scratch), prepared, asked)
        except _Problem as problem:
            return Rehearsal([problem.finding])
        except (InputError, BaseError) as error:  # they say what to do
            what = str(error).replace(scratch, str(prepared.folder))
        except (Exception, SystemExit) as error:
            what = f"nnUNetv2_train would fail: {type(error).__name__}: {error}"
    return Rehearsal([Finding(PROBLEM, what)])


def _make(trainer_class: Any, prepared: Prepared, asked: Asked, scratch: str) -> Any:
    """A trainer that reads from nnU-Net's folders and writes to the scratch folder."""
    plans = json.loads((prepared.folder / f"{asked.plans}.json").read_bytes())
    dataset_json = json.loads((prepared.folder / "dataset.json").read_bytes())
    fold = asked.fold if asked.fold == "all" else int(asked.fold)
    results = os.environ[RESULTS]
    with patch.dict(os.environ, {RESULTS: scratch, "nnUNet_wandb_enabled": "0"}):
        trainer = trainer_class(
            {**plans, "continue_training": False},
            prepared.configuration,
            fold,
            dataset_json,
            torch.device("cpu"),
        )
    if trainer.is_cascaded:
        earlier = trainer.folder_with_segs_from_previous_stage.replace(scratch, results)
        trainer.folder_with_segs_from_previous_stage = earlier
    if prepared.is_split_needed(asked):
        trainer.preprocessed_dataset_folder_base = scratch  # nnU-Net writes the new split there
    return trainer


def _begin(trainer: Any, prepared: Prepared, asked: Asked) -> Rehearsal:
    """Run what stands between the trainer's construction and the first epoch."""
    try:
        folder = Path(trainer.preprocessed_dataset_folder)
        check_preprocessed(folder, prepared.name, prepared.configuration)
    except InputError as error:
        words = ("-plans_name", asked.plans, "-c", prepared.configuration)
        raise _Problem(str(error), prepared.say_nnunet("nnUNetv2_preprocess", *words)) from None
    if trainer.is_cascaded:
        _check_previous_stage(trainer, prepared, asked)
    base = None
    if isinstance(trainer, MAPOTrainer):
        trainer._check_data()
        scratch_folder = trainer.output_folder_base
        trainer.output_folder_base = str(prepared.results(asked).parent)  # the base is beside it
        base = trainer._find_base()
        trainer.output_folder_base = scratch_folder
    trainer.initialize()
    findings = []
    if base is not None:
        trainer._start_from_base(base)
        findings.append(Finding(OK, f"fine-tunes {base.path}"))
    training, validation = trainer.get_tr_and_val_datasets()
    for dataset in (training, validation):
        for case in dataset.identifiers:
            dataset.load_case(case)
    numbers = f"{len(training.identifiers)} training and {len(validation.identifiers)} validation"
    findings.append(Finding(OK, f"fold {asked.fold}: {numbers} cases; a training begins"))
    return Rehearsal([*findings, *_check_fold(trainer)], training)


def _check_previous_stage(trainer: Any, prepared: Prepared, asked: Asked) -> None:
    """Whether a cascade has the predictions of the stage before it for the cases of this fold."""
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    cases = {case for part in trainer.do_split() for case in part}
    missing = [case for case in cases if not any(folder.glob(f"{glob.escape(case)}.*"))]
    if missing:
        previous = trainer.configuration_manager.previous_stage_name
        what = f"the cascade lacks predictions of {previous} for {len(missing)} cases in {folder}"
        words = (prepared.name, previous, "FOLD", "-tr", asked.trainer, "-p", asked.plans)
        earlier = say_command("nnUNetv2_train", *words)
        raise _Problem(what, f"{earlier}  (for each FOLD from 0 to 4)")


def _check_fold(trainer: Any) -> list[Finding]:
    """Whether the split has the fold."""
    if trainer.fold == "all":
        return []
    splits = Path(trainer.preprocessed_dataset_folder_base, "splits_final.json")
    num_folds = len(json.loads(splits.read_bytes())) if splits.is_file() else trainer.fold + 1
    if trainer.fold < num_folds:
        return []
    what = f"the split has {num_folds} folds; nnU-Net draws fold {trainer.fold} at random, 80 % for"
    return [Finding(NOTE, f"{what} training", "choose one of the others with -f")]
