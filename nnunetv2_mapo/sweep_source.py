"""What a sweep writes: its trainer classes as Python, its commands as a shell script."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from nnunetv2_mapo.config import MAPOConfig
from nnunetv2_mapo.sweep import PLAIN, Sweep

_WIDTH = 88  # of a line as ruff and black format it where nobody tells them otherwise
_TITLE = '''\
"""Trainers of a sweep, written by nnUNetv2_mapo sweep: change its file, not this one."""
'''
_SCRIPT = """\
#!/bin/sh
# The trainings of a sweep, written by nnUNetv2_mapo sweep. Each line can run by itself, on any GPU
# or machine that sees this folder. A line that runs again begins its training anew, while
# nnUNetv2_mapo sweep FILE --run goes on with what there is.
export nnUNet_extTrainer={folders}"${{nnUNet_extTrainer:+{separator}$nnUNet_extTrainer}}"
{trainings}
nnUNetv2_mapo compare {models} -f {folds} -o {output}
"""


def write_trainers(sweep: Sweep) -> str:
    """Python file with the sweep's own trainers, formatted as `ruff format` would.

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
    """Assignment of a call, in one line where it fits."""
    named = [f"{name}={_format_value(value)}" for name, value in values.items()]
    line = f"{indent}{target} = {function}({', '.join([*first, *named])})\n"
    if len(line) <= _WIDTH + 1:
        return line
    inner = f"{indent}    "
    arguments = [f"{inner}{each},\n" for each in first]
    for name, value in values.items():
        argument = f"{inner}{name}={_format_value(value)},\n"
        if isinstance(value, tuple) and len(argument) > _WIDTH + 1:
            entries = "".join(f"{inner}    {_format_value(each)},\n" for each in value)
            argument = f"{inner}{name}=(\n{entries}{inner}),\n"
        arguments.append(argument)
    return f"{indent}{target} = {function}(\n{''.join(arguments)}{indent})\n"


def _format_value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def write_commands(sweep: Sweep, dataset: str, trainer_folders: Sequence[str], output: str) -> str:
    """Shell script with one command for each training and fold, then the comparison.

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
    others = [training for training in sweep.trainings if training != sweep.reference]
    models = [
        f'"$nnUNet_results"/{shlex.quote(f"{dataset}/{sweep.model_folder(training)}")}'
        for training in (sweep.reference, *others)
    ]
    return _SCRIPT.format(
        folders=shlex.quote(os.pathsep.join(trainer_folders)),
        separator=os.pathsep,
        trainings="\n".join(commands),
        models=" ".join(models),
        folds=" ".join(map(str, sweep.file.folds)),
        output=shlex.quote(output),
    )
