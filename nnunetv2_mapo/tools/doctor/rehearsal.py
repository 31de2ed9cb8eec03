"""A training that begins in a scratch folder: what `nnUNetv2_train` does before its first epoch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_mapo.guards.start import check_preprocessed
from nnunetv2_mapo.rule import suggest
from nnunetv2_mapo.support.device import choose_device
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.tools.doctor.checks import NOTE, OK, PROBLEM, RESULTS, Asked, Finding
from nnunetv2_mapo.tools.doctor.costs import check_threads, estimate_costs
from nnunetv2_mapo.tools.trainers import make_in_scratch
from nnunetv2_mapo.trainer import MAPOTrainer

# Measured: bytes of the preferences of a round / bytes of the preprocessed segmentations of its
# cases: retinal vessels, 2D, with the reference's margins (without them at most 6.1, in 66 rounds
# of Kvasir-SEG, 2D, and MSD Hippocampus, 3D).
_FACTOR = 7.0
_PER_CASE = 2 * 4096 + 1024  # record and manifest entry; each file fills blocks of 4096 bytes
# Three checkpoints (best, latest, one that is being written), each of the weights and at most two
# moments of them, and the reference.
_NUM_NETWORKS = 3 * 3 + 1


def begin(asked: Asked, scratch: str) -> Iterator[Finding]:
    """Look at device and trainer and, with a data set, begin the training in a scratch folder."""
    device = choose_device(asked.device)
    torch.ones(1, device=device).sum().item()  # is PyTorch built for this GPU?
    is_slow = device.type == "cpu"
    yield Finding(NOTE if is_slow else OK, f"{device}{', which is slow' * is_slow}")
    trainer = _find_trainer(asked.trainer)
    trainer.__new__(trainer)  # one with MAPO refuses settings that are not valid
    bases = ", ".join(base.__name__ for base in trainer.__bases__)
    yield Finding(OK, f"{asked.trainer}({bases})")
    if asked.dataset:
        make = partial(
            get_trainer_from_args, asked.dataset, asked.configuration, asked.fold, asked.trainer,
            asked.plans, device=device,
        )  # fmt: skip
        made = make_in_scratch(make, scratch, Path(os.environ[RESULTS], asked.dataset))
        yield from _begin_training(made, asked, scratch)


def _find_trainer(name: str) -> Any:
    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if "Could not find" not in str(error):  # of the rule: it says what to do
            raise
        message = f"There is no trainer {name}.{suggest(name)}"
        raise InputError(message) from error


def _begin_training(trainer: Any, asked: Asked, scratch: str) -> Iterator[Finding]:
    """Run what stands between the trainer's construction and the first epoch."""
    fold = Path(trainer.output_folder.replace(scratch, os.environ[RESULTS]))
    if any((fold / f"checkpoint_{each}.pth").is_file() for each in ("latest", "final")):
        what = f"{fold} holds a training already, which nnUNetv2_train would begin anew"
        yield Finding(NOTE, what, "nnUNetv2_train … --c  (continues it)")
    folder = Path(trainer.preprocessed_dataset_folder)
    check_preprocessed(folder, str(asked.dataset), str(asked.configuration))
    has_mapo = isinstance(trainer, MAPOTrainer)
    if has_mapo:
        _start(trainer)
        if base := trainer._origin:
            yield Finding(OK, f"fine-tunes {base['path']}")
    else:
        trainer.initialize()
    training, validation = trainer.get_tr_and_val_datasets()
    for dataset in (training, validation):
        for case in dataset.identifiers:
            dataset.load_case(case)
    numbers = f"{len(training.identifiers)} training and {len(validation.identifiers)} validation"
    what = f"{asked.dataset}, {asked.plans}, {asked.configuration}, fold {asked.fold}: {numbers}"
    step = ", and a step with preferences works" if has_mapo else ""
    yield Finding(OK, f"{what} cases; a training begins{step}")
    num_rounds = 0  # that are on the disk at the same time
    if has_mapo:
        num_rounds = trainer.mapo.num_rounds
        num_rounds = num_rounds if trainer.mapo.keep_rounds else min(num_rounds, 2)
    size = sum(weights.nbytes for weights in trainer.network.parameters())
    yield check_disk(folder, training.identifiers, num_rounds, network_bytes=size)
    if has_mapo:
        yield from estimate_costs(trainer, training)
    if trainer.device.type == "cpu":
        yield from check_threads(trainer)


def _start(trainer: Any) -> None:
    """All that a training with MAPO does before its first epoch, a rehearsed step too."""
    workers = str(min(1, get_allowed_n_proc_DA()))
    with (
        patch.dict(os.environ, nnUNet_compile="0", nnUNet_n_proc_DA=workers),
        # it would write beside the preprocessed cases of nnU-Net before 2.6
        patch.object(nnUNetDatasetNumpy, "unpack_dataset"),
    ):
        trainer.on_train_start()
    trainer.finish_loaders()


def check_disk(
    folder: Path, training: Sequence[str], num_rounds: int, *, network_bytes: int
) -> Finding:
    """Compare what checkpoints and preferences need with what is free in the folder of results."""
    # CASE.npz holds the image too: then the estimate is too high
    files = (folder / f"{case}{end}" for case in training for end in ("_seg.b2nd", ".npz"))
    segmentations = sum(path.stat().st_size for path in files if path.is_file())
    preferences = num_rounds * (_FACTOR * segmentations + _PER_CASE * len(training))
    needed = _NUM_NETWORKS * network_bytes + preferences
    free = shutil.disk_usage(os.environ[RESULTS]).free
    what = f"checkpoints and preferences usually need less than {needed / 1e9:.2f} GB; "
    what += f"{free / 1e9:.2f} GB are free in {os.environ[RESULTS]}"
    if free >= needed:
        return Finding(OK, what)
    return Finding(PROBLEM, what, "free space, or train a variant with cases_per_round")
