"""What a sweep writes: its trainer classes as Python, its commands as a shell script."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from nnunetv2_mapo.config import MAPOConfig
from nnunetv2_mapo.sweep import PLAIN, Sweep

_WIDTH = 100  # of a line, more is broken
_TITLE = '''\
"""Trainers of a sweep, written by nnUNetv2_mapo sweep: change its file, not this one."""
'''
_SCRIPT = """\
#!/bin/sh
# The trainings of a sweep, written by nnUNetv2_mapo sweep. Each can run by itself, on any GPU or
# machine that sees this folder, where nnUNet_extTrainer is set by the line below. A training that
# runs again begins anew, while nnUNetv2_mapo sweep FILE --run goes on with what there is.
export nnUNet_extTrainer={folders}"${{nnUNet_extTrainer:+{separator}$nnUNet_extTrainer}}"
{commands}
"""


def write_trainers(sweep: Sweep) -> str:
    """Python file with the sweep's own trainers.

    The settings of a variant are written out: a sweep stays what it is when the variant changes.
    """
    file, default = sweep.file, MAPOConfig()
    own = [training for training in sweep.trainings if training.is_own and training.settings]
    if not own:
        return _TITLE
    beginning = f"{_TITLE}\n"
    start, function, first = default, "MAPOConfig", []
    if file.variant is not None:
        beginning += "from dataclasses import replace\n\n"
        start, function, first = sweep.start, "replace", ["START"]
    beginning += f"from nnunetv2_mapo import MAPOConfig, {PLAIN}\n"
    if file.variant is not None:
        beginning += f"\n# The settings of {PLAIN}_{file.variant} when this was written.\n"
        beginning += _format_call("START", "MAPOConfig", [], _differ(start, default), indent="")
    classes = []
    for training in own:
        name = PLAIN + training.trainer.removeprefix(f"{file.trainer}_MAPO")
        values = _differ(training.settings or start, start)
        call = _format_call("mapo", function, first, values, indent="    ")
        classes.append(f"\n\nclass {name}({PLAIN}):\n{call}")
    return beginning + "".join(classes)


def _differ(settings: MAPOConfig, start: MAPOConfig) -> dict[str, Any]:
    names = [field.name for field in fields(MAPOConfig)]
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(start, name)}


def _format_call(
    target: str, function: str, first: Sequence[str], values: Mapping[str, Any], *, indent: str
) -> str:
    """Assignment of a call, in one line where it fits, else with one line for each argument."""
    arguments = [*first, *(f"{name}={value!r}" for name, value in values.items())]
    line = f"{indent}{target} = {function}({', '.join(arguments)})"
    if len(line) <= _WIDTH:
        return f"{line}\n"
    lines = "".join(f"{indent}    {argument},\n" for argument in arguments)
    return f"{indent}{target} = {function}(\n{lines}{indent})\n"


def write_commands(sweep: Sweep, dataset: str, trainer_folders: Sequence[str], output: str) -> str:
    """Shell script with one command for each training and fold, then the comparison of several.

    Args:
        sweep: The sweep.
        dataset: `DatasetXXX_Name`.
        trainer_folders: Folders that nnU-Net must look for trainers in.
        output: Folder of the comparison.
    """
    commands = [
        shlex.join(["nnUNetv2_train", *sweep.train_arguments(dataset, training, fold)])
        for fold in sweep.file.folds
        for training in sweep.trainings
    ]
    if len(sweep.trainings) > 1:
        models = " ".join(
            f'"$nnUNet_results"/{shlex.quote(f"{dataset}/{sweep.model_folder(training)}")}'
            for training in sweep.reference_first
        )
        folds = " ".join(map(str, sweep.file.folds))
        commands.append(f"nnUNetv2_mapo compare {models} -f {folds} -o {shlex.quote(output)}")
    return _SCRIPT.format(
        folders=shlex.quote(os.pathsep.join(trainer_folders)),
        separator=os.pathsep,
        commands="\n".join(commands),
    )
