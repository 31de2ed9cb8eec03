"""Where nnU-Net finds the trainer, and what keeps it from finding it."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.doctor.finding import (
    NOTE,
    OK,
    PROBLEM,
    Finding,
    last_line,
    say_export,
    say_unset,
)
from nnunetv2_mapo.tools.doctor.installation import RULE, external_folders
from nnunetv2_mapo.tools.doctor.requirements import say_reinstall
from nnunetv2_mapo.tools.nnunet import find_installed_trainers, find_trainer_configs


class Found(NamedTuple):
    """What the search for a trainer gave.

    Attributes:
        finding: What was seen.
        trainer: The class; None if nnU-Net finds none.
    """

    finding: Finding
    trainer: Any = None


def check_external_folders() -> list[Finding]:
    """Check that the folders that `nnUNet_extTrainer` names exist."""
    folders = external_folders()
    return [
        Finding(
            NOTE,
            f"nnUNet_extTrainer names {folder}, which does not exist",
            say_external([other for other in folders if other != folder]),
        )
        for folder in folders
        if not folder.is_dir()
    ]


def say_external(folders: Sequence[Path]) -> str:
    """Command that makes `nnUNet_extTrainer` name these folders."""
    if not folders:
        return say_unset("nnUNet_extTrainer")
    return say_export("nnUNet_extTrainer", os.pathsep.join(map(str, folders)))


def find_trainer(name: str) -> Found:
    """Look for a trainer as `nnUNetv2_train` does."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = recursive_find_trainer_class_by_name(name)
    except (Exception, SystemExit) as error:
        return Found(_explain(name, error))
    file = _file_of(trainer)
    if not hasattr(trainer, "mapo"):
        what = f"{name} trains without MAPO ({file})"
        return Found(Finding(NOTE, what, f"-tr {name}_MAPO"), trainer)
    bases = ", ".join(base.__name__ for base in trainer.__bases__)
    return Found(Finding(OK, f"{name}({bases}); its class is in {file}"), trainer)


def _file_of(trainer: Any) -> Path:
    try:
        return Path(inspect.getfile(trainer))
    except (TypeError, OSError):  # nnU-Net forgets modules of external folders after its search
        file = Path(*trainer.__module__.split(".")).with_suffix(".py")
        places = (folder / file for folder in external_folders())
        return next((place for place in places if place.is_file()), file)


def _explain(name: str, error: BaseException) -> Finding:
    """Why the search for a trainer ended with an error."""
    file = _find_broken(error)
    if file is not None:
        what = f"{file} cannot be imported, so nnU-Net does not find {name}: {last_line(error)}"
        others = [folder for folder in external_folders() if not file.is_relative_to(folder)]
        if others != external_folders():
            return Finding(PROBLEM, what, f"{say_external(others)}  (or correct the file)")
        is_own = file.parent == find_installed_trainers()
        return Finding(PROBLEM, what, say_reinstall() if is_own else f"correct {file}")
    if "Could not find requested" not in str(error):  # the rule of names says what is wrong
        return Finding(PROBLEM, f"-tr {name}: {error}", "choose another trainer with -tr")
    what = f"nnU-Net finds no trainer {name}"
    try:
        configs = find_trainer_configs()
    except CommandError as missing:
        return Finding(PROBLEM, f"{what}: {missing}", say_reinstall())
    if configs and not any((folder / RULE).is_file() for folder in external_folders()):
        return Finding(PROBLEM, what, say_external([*configs, *external_folders()]))
    mend = "put the folder of its file into nnUNet_extTrainer, or choose another with -tr"
    return Finding(PROBLEM, what, mend)


def _find_broken(error: BaseException) -> Path | None:
    """Module of a trainer whose import raised an error; None if another thing did."""
    if isinstance(error, SyntaxError) and error.filename:
        return Path(error.filename)
    frames = traceback.extract_tb(error.__traceback__)
    files = [Path(frame.filename) for frame in frames if frame.name == "<module>"]
    return next((file for file in files if _is_searched(file)), None)


def _is_searched(file: Path) -> bool:
    import nnunetv2

    own = Path(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    return any(file.is_relative_to(folder) for folder in (own, *external_folders()))
