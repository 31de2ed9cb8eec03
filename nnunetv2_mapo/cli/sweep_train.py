"""The trainings of a sweep, one after another; what is finished is left alone."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunetv2_mapo.cli.nnunet import CommandError, find_command
from nnunetv2_mapo.cli.sweep_folder import SweepFolder
from nnunetv2_mapo.continuing import BEST, LATEST
from nnunetv2_mapo.history import FINAL
from nnunetv2_mapo.sweep import Sweep, Training

_GRACE_S = 10

State = Literal["new", "begun", "trained", "finished"]
_OPTIONS: dict[State, list[str]] = {"new": [], "begun": ["--c"], "trained": ["--val"]}
_WORDS: dict[State, str] = {
    "new": "training",
    "begun": "continuing its training",
    "trained": "its validation is missing",
}


def find_state(fold: Path) -> State:
    """How far nnU-Net has come in the folder of a fold.

    Raises:
        CommandError: A finished training was begun anew; nnU-Net would continue the finished one.
    """
    is_begun = (fold / LATEST).is_file()  # nnU-Net deletes it at the end
    if (fold / FINAL).is_file():
        if is_begun:
            message = (
                f"{fold} has a finished training ({FINAL}) and one that was begun anew ({LATEST}). "
                f"Delete {FINAL} to continue the new one, or {LATEST} to keep the finished one."
            )
            raise CommandError(message)
        return "finished" if (fold / "validation" / "summary.json").is_file() else "trained"
    return "begun" if is_begun or (fold / BEST).is_file() else "new"


def read_dice(fold: Path) -> float:
    """Mean Dice of a finished validation, as nnU-Net wrote it."""
    content = json.loads((fold / "validation" / "summary.json").read_bytes())
    dice: float = content["foreground_mean"]["Dice"]
    return dice


def start_command(command: Sequence[str], log: Path) -> int:
    """Run a command to its end; its exit code.

    Args:
        command: First the name of one of nnU-Net's commands, then its arguments.
        log: Its output is appended to this file.
    """
    with (
        log.open("ab") as file,
        subprocess.Popen(
            [find_command(command[0]), *command[1:]],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            end(process)
            raise


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a child end after Ctrl-C, and make it end if it does not."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)  # a terminal sends Ctrl-C to it as well
        return
    if os.name == "nt":
        process.terminate()
    else:
        process.send_signal(signal.SIGINT)  # so that it ends its augmentation workers
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
        return
    process.kill()


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        sweep: The sweep.
        folder: Its folder, written.
        results: The data set's folder in `nnUNet_results`.
        start: Runs a command, see `start_command`.
    """

    sweep: Sweep
    folder: SweepFolder
    results: Path
    start: Callable[[Sequence[str], Path], int] = start_command

    def fold(self, training: Training, fold: int) -> Path:
        """nnU-Net's folder of a training's fold."""
        return self.results / self.sweep.model_folder(training) / f"fold_{fold}"

    def run(self) -> list[str]:
        """Train whatever is not finished, fold by fold; one line for each training that failed."""
        jobs = [(each, fold) for fold in self.sweep.file.folds for each in self.sweep.trainings]
        finished = [job for job in jobs if find_state(self.fold(*job)) == "finished"]
        if finished:
            print(f"{len(finished)} of {len(jobs)} trainings are finished already:")
            print("\n".join(f"  {training.trainer}, fold {fold}" for training, fold in finished))
        failed = []
        open_jobs = [job for job in jobs if job not in finished]
        for number, (training, fold) in enumerate(open_jobs, len(finished) + 1):
            place = f"[{number} of {len(jobs)}] fold {fold}, {training.trainer}"
            if training.is_own:
                place += f" ({training.label})"
            if problem := self.train(training, fold, place):
                failed.append(f"{training.trainer}, fold {fold}: {problem}")
        return failed

    def train(self, training: Training, fold: int, place: str) -> str:
        """Begin, continue or validate one training; what went wrong, or nothing.

        Args:
            training: The training.
            fold: Its fold.
            place: Which one of how many, for the terminal.
        """
        path, log = self.fold(training, fold), self.folder.log(training.trainer, fold)
        state = find_state(path)
        words = self.sweep.train_arguments(self.results.name, training, fold)
        command = ["nnUNetv2_train", *words, *_OPTIONS[state]]
        print(f"{place}: {_WORDS[state]}", flush=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} $ {shlex.join(command)}\n")
        started = time.monotonic()
        try:
            code = self.start(command, log)
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on from the last checkpoint.", flush=True)
            raise
        minutes = (time.monotonic() - started) / 60
        if code == 0 and find_state(path) == "finished":
            print(f"    {minutes:.1f} min, Dice {read_dice(path):.4f}", flush=True)
            return ""
        problem = f"exit code {code}" if code else "it ended without a validation"
        print(f"    FAILED after {minutes:.1f} min, {problem}: {log}", flush=True)
        return f"{problem}, {log}"
