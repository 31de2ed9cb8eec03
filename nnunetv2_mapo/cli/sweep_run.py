"""The steps of a sweep: read the file, look for what it names, write, train, tabulate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_mapo.cli.nnunet import CommandError, find_trainer_configs
from nnunetv2_mapo.cli.sweep_folder import SweepFolder, name_trainer_folders, read_json
from nnunetv2_mapo.cli.sweep_table import find_finished, tabulate
from nnunetv2_mapo.cli.sweep_train import SweepRun, start_command
from nnunetv2_mapo.config import MAPOConfig
from nnunetv2_mapo.doctor.dataset import Asked, Prepared, check_dataset
from nnunetv2_mapo.doctor.folders import RESULTS, find_folder, say_elsewhere
from nnunetv2_mapo.doctor.trainers import Found, find_trainer
from nnunetv2_mapo.history import find_checkpoint
from nnunetv2_mapo.lock import InUseError, lock_folder
from nnunetv2_mapo.rule import describe_more
from nnunetv2_mapo.sweep import PLAIN, Sweep, make_sweep
from nnunetv2_mapo.sweep_file import SweepError, read_entries


def run_sweep(
    file: Path,
    folder: Path,
    *,
    is_run: bool,
    start: Callable[[Sequence[str], Path], int] = start_command,
) -> None:
    """Write a sweep; run it if asked; tabulate what is finished.

    Args:
        file: The sweep's file.
        folder: For everything that is made of it.
        is_run: Whether to train.
        start: Runs a command of nnU-Net, see `start_command`.

    Raises:
        CommandError: Something cannot be used, or a training failed.
    """
    name_trainer_folders(list(map(str, find_trainer_configs())))
    try:
        sweep, prepared = open_sweep(file)
    except SweepError as error:
        lines = "\n  ".join(error.problems)
        message = f"{file} is not a valid sweep:\n  {lines}"
        raise CommandError(message) from error
    sweep_folder = SweepFolder(folder)
    sweep_folder.write(sweep, prepared.name)
    name_trainer_folders(sweep_folder.trainer_folders)
    num_folds = len(sweep.file.folds)
    print(
        f"{len(sweep.trainings)} trainers, {num_folds} fold{'s'[: num_folds > 1]}: "
        f"{len(sweep.trainings) * num_folds} trainings.\n"
        f"Written: {sweep_folder.trainers.name} and {sweep_folder.commands.name} in {folder}",
        flush=True,
    )
    results = find_folder(RESULTS)
    if results is None:
        if is_run:
            message = f"{RESULTS} is not set or not there: {say_elsewhere(RESULTS)}"
            raise CommandError(message)
        return
    run = SweepRun(sweep, sweep_folder, results / prepared.name, start)
    check_results(run)
    failed = []
    if is_run:
        failed = _train(run)
        check_results(run)  # also of trainers that nnU-Net found in another place
    finished = find_finished(run)
    if is_run or any(finished.values()):
        print(f"\n{tabulate(run, finished)}")
    if failed:
        lines = "\n  ".join(failed)
        message = (
            f"{len(failed)} of the trainings failed; the same command tries them again:\n  {lines}"
        )
        raise CommandError(message)


def _train(run: SweepRun) -> list[str]:
    try:
        lock_folder(run.folder.root)
    except InUseError as error:
        raise CommandError(str(error)) from error
    return run.run()


def open_sweep(file: Path) -> tuple[Sweep, Prepared]:
    """Read a sweep's file and find everything that it names.

    Raises:
        CommandError: It cannot be read, or the data set is not prepared.
        SweepError: It is not valid.
    """
    entries = read_entries(read_json(file))
    start = find_settings(entries.variant) if entries.variant else MAPOConfig()
    sweep = make_sweep(entries, start)
    asked = Asked(
        str(entries.dataset), entries.configuration, entries.plans, entries.trainer,
        str(entries.folds[0]),
    )  # fmt: skip
    findings, prepared = check_dataset(asked)
    if prepared is None:
        problems = "; ".join(f"{each.what}: {each.mend}" for each in findings)
        message = f"{problems} (in the file: dataset, configuration, plans)"
        raise CommandError(message)
    plans = PlansManager(str(prepared.folder / f"{entries.plans}.json"))
    sweep.check_dimensions(len(plans.get_configuration(entries.configuration).patch_size))
    check_trainers(sweep)
    return sweep, prepared


def find_settings(variant: str) -> MAPOConfig:
    """Settings of `nnUNetTrainer_MAPO_V`.

    Raises:
        SweepError: There is no such trainer, or it is more than its settings.
    """
    name = f"{PLAIN}_{variant}"
    found = find_trainer(name)
    if found.trainer is None:
        raise SweepError([f"variant: {_say_missing(found, name)}"])
    if more := describe_more(found.trainer):
        message = f"variant: {name} is more than its settings ({more}): a sweep takes only these"
        raise SweepError([message])
    settings: MAPOConfig = found.trainer.mapo
    return settings


def check_trainers(sweep: Sweep) -> None:
    """Refuse trainers that nnU-Net does not find, or that have other settings than it says here.

    Raises:
        SweepError: One line for each of them.
    """
    base, name = sweep.file.trainer, sweep.file.name
    problems = []
    if find_trainer(f"{PLAIN}_{name}").trainer is not None:  # its control may have this name too
        problems.append(f"name: there is a trainer {PLAIN}_{name} already, choose another name")
    others = {each.trainer: each.settings for each in sweep.trainings if not each.is_own}
    others.pop(base, None)  # found together with the others, which are named after it
    if not any(other.startswith(f"{base}_MAPO") for other in others):
        others[f"{base}_MAPO"] = None
    for trainer, settings in others.items():  # each costs nnU-Net a search
        found = find_trainer(trainer)
        key = "trainer" if trainer.startswith(f"{base}_MAPO") else "baselines"
        if found.trainer is None:
            problems.append(f"{key}: {_say_missing(found, trainer)}")
        elif settings and (differences := settings.differences(found.trainer.mapo.to_dict())):
            varied = ", ".join(each.split(":")[0] for each in differences)
            problems.append(f"{key}: {trainer} is defined with other settings ({varied})")
    if problems:
        raise SweepError(problems)


def _say_missing(found: Found, name: str) -> str:
    return found.finding.what.removeprefix(f"-tr {name}: ")


def check_results(run: SweepRun) -> None:
    """Refuse trainings of the same name that were made with other settings.

    Raises:
        CommandError: One line for each of them.
    """
    trained = [
        (run.fold(training, fold), training.settings)
        for training in run.sweep.trainings
        for fold in run.sweep.file.folds
        if training.settings is not None
    ]
    problems = [
        f"{path}: {'; '.join(differences)}"
        for path, settings in trained
        if (differences := settings.differences(read_settings(path)))
    ]
    if problems:
        lines = "\n  ".join(problems)
        message = (
            f"Trainings with other settings have these names:\n  {lines}\nGive the sweep another "
            '"name" and another folder (-o), or move these trainings away.'
        )
        raise CommandError(message)


def read_settings(fold: Path) -> dict[str, Any]:
    """Settings of MAPO with which a fold was trained; empty where nothing was, or without MAPO."""
    try:
        path = find_checkpoint(fold)
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
        return dict(checkpoint["mapo"]["config"])
    except Exception:  # no checkpoint, no MAPO, or damaged: nnU-Net itself says what is wrong
        return {}
