"""A training that begins in a scratch folder: what `nnUNetv2_train` does before its first epoch."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_mapo.guards.base_checkpoint import BaseError
from nnunetv2_mapo.guards.fine_tuning import find_base, start_from_base
from nnunetv2_mapo.guards.start import check_preprocessed
from nnunetv2_mapo.support.errors import CommandError, InputError
from nnunetv2_mapo.tools.device import choose_device
from nnunetv2_mapo.tools.doctor.dataset import Asked
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding, Problem, explain
from nnunetv2_mapo.tools.doctor.machine import RESULTS, check_disk, estimate_disk
from nnunetv2_mapo.tools.nnunet import find_trainer_configs
from nnunetv2_mapo.trainer import MAPOTrainer


def rehearse(asked: Asked) -> Iterator[Finding]:
    """Begin a training on the CPU and leave no trace of it.

    Args:
        asked: Without a data set, or as `find_dataset` found it.

    Yields:
        What was found; a problem is the last.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            device = choose_device(asked.device)
            torch.ones(1, device=device).sum().item()  # is PyTorch built for this GPU?
            is_slow = device.type == "cpu"
            yield Finding(NOTE if is_slow else OK, f"{device}{', which is slow' * is_slow}")
            yield _find_trainer(asked.trainer)
            if asked.dataset:
                yield from _begin(_make(asked, scratch), asked)
        except Problem as problem:
            yield Finding(PROBLEM, *problem.args)
        except (CommandError, InputError, BaseError) as error:  # they say what to do
            yield Finding(PROBLEM, str(error).replace(scratch, str(asked.folder)))
        except (Exception, SystemExit) as error:
            yield Finding(PROBLEM, f"nnUNetv2_train would fail: {explain(error)}")


def _find_trainer(name: str) -> Finding:
    """Look for a trainer as `nnUNetv2_train` does."""
    try:
        trainer = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if "Could not find requested" not in str(error):
            raise
        named = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)  # noqa: SIM112  # nnU-Net's own name
        folders = {*map(str, find_trainer_configs())} - {*named} or {"FOLDER"}
        variable = shlex.quote(os.pathsep.join([*folders, *filter(None, named)]))
        what = f"nnU-Net finds no trainer {name}"
        mend = f"export nnUNet_extTrainer={variable}  (or choose another with -tr)"
        raise Problem(what, mend) from None
    trainer.__new__(trainer)  # one with MAPO refuses settings that are not valid
    return Finding(OK, f"{name}({', '.join(base.__name__ for base in trainer.__bases__)})")


def _make(asked: Asked, scratch: str) -> Any:
    """A trainer that reads from nnU-Net's folders and writes to the scratch folder."""
    fold = asked.fold if asked.fold == "all" else int(asked.fold)
    with patch.dict(os.environ, {RESULTS: scratch, "nnUNet_wandb_enabled": "0"}):
        trainer = get_trainer_from_args(
            asked.dataset, asked.configuration, fold, asked.trainer, asked.plans,
            device=torch.device("cpu"),
        )  # fmt: skip
    if trainer.is_cascaded:
        earlier = trainer.folder_with_segs_from_previous_stage
        trainer.folder_with_segs_from_previous_stage = earlier.replace(scratch, os.environ[RESULTS])
    if asked.needs_split:
        trainer.preprocessed_dataset_folder_base = scratch  # nnU-Net writes the new split there
    return trainer


def _begin(trainer: Any, asked: Asked) -> Iterator[Finding]:
    """Run what stands between the trainer's construction and the first epoch."""
    folder = Path(trainer.preprocessed_dataset_folder)
    check_preprocessed(folder, str(asked.dataset), str(asked.configuration))
    base = None
    if isinstance(trainer, MAPOTrainer):
        trainer.check_data()
        with patch.object(trainer, "output_folder_base", str(asked.model)):  # the base is beside it
            base = find_base(trainer)
    trainer.initialize()
    if base is not None:
        start_from_base(trainer, trainer.network, base)
        yield Finding(OK, f"fine-tunes {base.path}")
    training, validation = trainer.get_tr_and_val_datasets()
    for dataset in (training, validation):
        for case in dataset.identifiers:
            dataset.load_case(case)
    numbers = f"{len(training.identifiers)} training and {len(validation.identifiers)} validation"
    yield Finding(OK, f"fold {asked.fold}: {numbers} cases; a training begins")
    num_rounds = trainer.mapo.num_rounds if isinstance(trainer, MAPOTrainer) else 0
    size = sum(weights.nbytes for weights in trainer.network.parameters())
    num_bytes = estimate_disk(folder, training.identifiers, num_rounds, network_bytes=size)
    yield check_disk(num_bytes, Path(os.environ[RESULTS]))
