"""The file of a sweep, and the folder that is made of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_mapo.cli.nnunet import CommandError, find_trainer_configs
from nnunetv2_mapo.files import WriteError, write_atomically
from nnunetv2_mapo.sweep import Sweep
from nnunetv2_mapo.sweep_source import write_commands, write_trainers

_EXTERNAL = "nnUNet_extTrainer"


@dataclass(frozen=True)
class SweepFolder:
    """Folder of a sweep.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def trainers(self) -> Path:
        """Its trainer classes; nnU-Net imports every Python file beside them."""
        return self.root / "sweep_trainers.py"

    @property
    def commands(self) -> Path:
        """Shell script of its trainings."""
        return self.root / "commands.sh"

    @property
    def record(self) -> Path:
        """What the folder was made for; it marks the folder as a sweep's."""
        return self.root / "sweep.json"

    @property
    def trainer_folders(self) -> list[str]:
        """Folders that nnU-Net must look for trainers in, besides those that the user named."""
        return [str(self.root), *map(str, find_trainer_configs())]

    def log(self, trainer: str, fold: int) -> Path:
        """Output of a training, of each of its starts."""
        return self.root / "logs" / f"{trainer}__fold_{fold}.log"

    def write(self, sweep: Sweep, dataset: str) -> None:
        """Write trainers, commands and record.

        Args:
            sweep: The sweep.
            dataset: `DatasetXXX_Name`.

        Raises:
            CommandError: The folder cannot be used, or holds something else.
        """
        record = make_record(sweep, dataset)
        self._check_earlier(record)
        commands = write_commands(sweep, dataset, self.trainer_folders, str(self.root))
        try:
            (self.root / "logs").mkdir(parents=True, exist_ok=True)
            write_atomically(self.record, json.dumps(record, indent=1).encode())
            write_atomically(self.trainers, write_trainers(sweep).encode())
            write_atomically(self.commands, commands.encode())
        except (OSError, WriteError) as error:
            message = f"Cannot write to {self.root}: {error}. Name another folder with -o."
            raise CommandError(message) from error

    def _check_earlier(self, record: dict[str, Any]) -> None:
        """Refuse a folder of something else, or of a sweep that does not go together with this one.

        Values, folds and baselines may be added or taken away: the trainings that remain keep
        their names and their settings.
        """
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return
        try:
            earlier = json.loads(self.record.read_bytes())
            differences = _compare(earlier, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = (
                f"{self.root} is not empty and no folder of a sweep. Name another one with -o."
            )
            raise CommandError(message) from error
        if differences:
            lines = "\n  ".join(differences)
            message = (
                f"{self.root} holds another sweep:\n  {lines}\nThe same name for other trainings "
                'would mix their results. Give this sweep another "name" and another folder (-o), '
                "or restore the file."
            )
            raise CommandError(message)


def make_record(sweep: Sweep, dataset: str) -> dict[str, Any]:
    """What must not change while a folder is in use."""
    file = sweep.file
    return {
        "dataset": dataset,
        "configuration": file.configuration,
        "plans": file.plans,
        "trainer": file.trainer,
        "arguments": file.arguments,
        "trainings": {
            training.trainer: training.settings and training.settings.to_dict()
            for training in sweep.trainings
        },
    }


def _compare(earlier: dict[str, Any], record: dict[str, Any]) -> list[str]:
    differences = [
        f"{key}: {earlier[key]} there, {value} in the file"
        for key, value in record.items()
        if key != "trainings" and earlier[key] != value
    ]
    for trainer, settings in record["trainings"].items():
        there = earlier["trainings"].get(trainer)
        if there and settings:
            differences += [
                f"{trainer}: {name} = {there[name]} there, {value} in the file"
                for name, value in settings.items()
                if name in there and there[name] != value
            ]
    return differences


def read_json(file: Path) -> Any:
    """Content of a sweep's file.

    Raises:
        CommandError: It is missing or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}."
    except ValueError as error:  # of JSON or of the encoding
        message = f"{file} is not JSON: {error}."
    raise CommandError(message)


def name_trainer_folders(folders: list[str]) -> None:
    """Let nnU-Net, here and in child processes, look for trainers in these folders first."""
    earlier = os.environ.get(_EXTERNAL, "").split(os.pathsep)
    named = [*folders, *(folder for folder in earlier if folder and folder not in folders)]
    os.environ[_EXTERNAL] = os.pathsep.join(named)
