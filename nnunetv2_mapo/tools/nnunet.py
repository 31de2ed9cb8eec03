"""nnU-Net's own commands as child processes: their environment, their output, their failure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nnunetv2

import nnunetv2_mapo
from nnunetv2_mapo.support.errors import CommandError

_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")
_NUMBER = re.compile(r"nan|\d+\.\d+")
# Beginnings of the lines of nnU-Net that are shown as they are.
_SHOWN = ("MAPO: ", "Predicting ", "Preprocessing", "Experiment planning", "Fingerprint extraction",
          "Using trainer", "Mean Validation Dice", "predicting ")  # fmt: skip
_SHOWN_VALUES = ("loss/dpo", "rewards/accuracies")
_INSIDE_NNUNET = "training/nnUNetTrainer/variants/mapo"
_WIDTH = 170  # characters of a shown line


@dataclass(frozen=True)
class NNUNet:
    """nnU-Net's commands with their three folders inside one folder.

    Attributes:
        folder: Holds `nnUNet_raw`, `nnUNet_preprocessed`, `nnUNet_results`, `trainers`, `logs`.
    """

    folder: Path

    @property
    def paths(self) -> dict[str, str]:
        """Environment variables that tell nnU-Net where everything is."""
        own = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        trainers = [self.folder / "trainers", *find_trainer_configs()]
        earlier = os.environ.get("nnUNet_extTrainer")  # noqa: SIM112  # nnU-Net's own name
        return {
            **{name: str(self.folder / name) for name in own},
            "nnUNet_extTrainer": os.pathsep.join([*map(str, trainers), *filter(None, [earlier])]),
        }

    def run(self, command: str, *arguments: str, **variables: str) -> None:
        """Run a command of nnU-Net; show its progress, keep its full output in a log.

        Args:
            command: Such as `"nnUNetv2_train"`.
            arguments: Its arguments.
            variables: Environment variables for this command alone.

        Raises:
            CommandError: It is not installed or it failed.
        """
        environment = {
            **os.environ,
            **self.paths,
            "nnUNet_def_n_proc": "1",  # else 8 processes, each of which imports nnU-Net
            "nnUNet_n_proc_DA": "1",  # whatever the user has set: the planner fails with 0
            "nnUNet_compile": "0",  # compiling takes longer than this training
            "nnUNet_wandb_enabled": "0",
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve each other on a busy machine
            "PYTHONUNBUFFERED": "1",
            **variables,
        }
        log = self.folder / "logs" / f"{time.strftime('%H%M%S')}_{command}.log"
        print(f"\n$ {command} {' '.join(arguments)}", flush=True)
        started = time.monotonic()
        with (
            log.open("w", buffering=1, encoding="utf-8") as file,
            subprocess.Popen(
                [find_command(command), *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            ) as process,
        ):
            lines = (line for line in process.stdout or [] if file.write(line))
            try:
                for line in shorten(lines):
                    print(f"  [{time.monotonic() - started:4.0f} s] {line}", flush=True)
            except BaseException:  # Ctrl-C, too
                process.terminate()
                raise
        if process.returncode != 0:
            last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
            message = (
                f"{command} failed with exit code {process.returncode}. Its last lines:\n{last}\n"
                f"Its full output: {log}"
            )
            raise CommandError(message)
        print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def find_command(name: str) -> str:
    """Path of a command, first beside the running Python.

    Raises:
        CommandError: There is none.
    """
    folders = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=folders)
    if found is None:
        message = f"{name} is not installed: pip install 'nnunetv2>=2.8.1'"
        raise CommandError(message)
    return found


def find_trainer_configs() -> list[Path]:
    """Folder that nnU-Net must be told of to find MAPO's trainers: that of a checkout, if any."""
    checkout = Path(nnunetv2_mapo.__file__).parents[1] / "trainer_configs"
    are_installed = Path(nnunetv2.__path__[0], _INSIDE_NNUNET).is_dir()
    return [] if are_installed or not checkout.is_dir() else [checkout]


def shorten(lines: Iterable[str]) -> Iterator[str]:
    """What a reader needs of nnU-Net's output: one line for each epoch, and milestones."""
    epoch, pseudo_dice, rewards = "", "", ""
    for line in lines:
        text = _TIMESTAMP.sub("", line).strip()
        if match := re.fullmatch(r"Epoch (\d+)", text):
            epoch, rewards = match[1], ""
        elif text.startswith("MAPO: loss/"):
            values = text.removeprefix("MAPO: ").split(", ")
            rewards = ", ".join(v for v in values if v.startswith(_SHOWN_VALUES)) + "; "
        elif text.startswith("Pseudo dice"):
            pseudo_dice = " ".join(_NUMBER.findall(text))
        elif text.startswith("Epoch time: "):
            yield f"epoch {epoch}: {rewards}pseudo Dice {pseudo_dice} ({text[12:]})"
        elif text.startswith(_SHOWN):
            yield text.split("; MAPOConfig", maxsplit=1)[0][:_WIDTH]
