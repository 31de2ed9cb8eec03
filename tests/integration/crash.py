"""Starts `nnUNetv2_train` again and again for `test_crash.py`, and kills it where it is told to.

nnU-Net is imported once, and each training is a fork: a command is a line of JSON on the standard
input, the exit code of the training a line on the standard output.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_mapo import trainer


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(place: str, number: int, when: str) -> None:
    """Let a function kill the process.

    Args:
        place: `module:function` or `module:class.function`.
        number: In which of its calls, from 1.
        when: `before` or `after` the call, or `half`: with half of the file written that it is
            given as its last argument, or that it is a method of.
    """
    module, _, names = place.partition(":")
    *owners, name = names.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    function, calls = getattr(owner, name), []

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        is_due = len(calls) == number
        if is_due and when == "before":
            kill()
        result = function(*arguments, **keywords)
        if is_due and when == "half":
            file = Path(arguments[0] if isinstance(arguments[0], Path) else arguments[-1])
            os.truncate(file, file.stat().st_size // 2)
        if is_due:
            kill()
        return result

    setattr(owner, name, call)


def main() -> None:
    # Not the point here: pictures that take longer than an epoch, and pools of processes.
    LocalLogger.plot_progress_png = trainer.plot_progress = lambda *_: None
    nnUNetTrainer.perform_actual_validation = lambda *_: None
    # A name that is found last: all that the forks would import is imported before.
    with contextlib.redirect_stdout(sys.stderr):
        recursive_find_trainer_class_by_name("nnUNetTrainerTiny")
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open(f"{command['results']}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["nnUNet_results"] = command["results"]
            sys.argv = ["nnUNetv2_train", *command["arguments"]]
            torch.set_num_threads = lambda _: None  # nnU-Net takes every core
            if command["kill"]:
                kill_at(*command["kill"])
            run_training_entry()
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
