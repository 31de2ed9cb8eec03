"""Where nnU-Net finds the trainers, and what keeps it from finding them."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_mapo.cli.nnunet import CommandError, find_trainer_configs
from nnunetv2_mapo.config import MAPOConfig
from nnunetv2_mapo.doctor.finding import (
    NOTE,
    OK,
    PROBLEM,
    Finding,
    has_problem,
    last_line,
    say_export,
    say_unset,
)
from nnunetv2_mapo.doctor.installation import INSIDE_NNUNET, external_folders, find_nnunet
from nnunetv2_mapo.doctor.requirements import say_reinstall

_PLAIN = "nnUNetTrainer_MAPO"
_NOBODY = "no trainer has this name"  # searching for it imports every module
_OWN = INSIDE_NNUNET.parents[1]  # nnU-Net's own trainers


class Trainers(NamedTuple):
    """What the search for a trainer gave.

    Attributes:
        findings: What was seen.
        trainer: The requested class; None if there is none that can be trained with.
    """

    findings: list[Finding]
    trainer: Any


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


def check_trainers(name: str) -> Trainers:
    """Look for `nnUNetTrainer_MAPO` and the requested trainer as nnU-Net does.

    Args:
        name: Of the requested trainer.
    """
    if broken := check_modules():
        return Trainers(broken, None)
    findings, trainer = [], None
    for wanted in dict.fromkeys((_PLAIN, name)):
        found, trainer = _find(wanted)
        findings += found
    return Trainers(findings, None if has_problem(findings) else trainer)


def check_modules() -> list[Finding]:
    """Import every module in which nnU-Net looks for trainers; one that fails breaks its search."""
    errors = {folder: _import_all(folder) for folder in _search_folders()}
    fine = [folder for folder in external_folders() if errors.get(folder, ...) is None]
    findings = []
    for folder, error in errors.items():
        if error is not None:
            file = _blame(error, folder)
            what = f"{file} cannot be imported, so nnU-Net finds no trainer: {last_line(error)}"
            mend = f"{say_external(fine)}  (or correct the file)"
            is_external = folder in external_folders()
            findings.append(Finding(PROBLEM, what, mend if is_external else _say_intact(file)))
    return findings


def _import_all(folder: Path) -> BaseException | None:
    """Import what nnU-Net imports of a folder; the error that ends its search, if one does."""
    try:
        _search(folder, _NOBODY)
    except (Exception, SystemExit) as error:
        return error
    return None


def _say_intact(file: Path) -> str:
    """What mends a file in nnU-Net's own folder."""
    if file.parent.parts[-len(INSIDE_NNUNET.parts) :] == INSIDE_NNUNET.parts:
        return say_reinstall()
    return f"correct {file}, or move it away"


def _search_folders() -> list[Path]:
    """Folders in nnU-Net's order: its own, then the external ones that exist."""
    nnunet = find_nnunet()
    own = [nnunet / _OWN] if nnunet else []
    return [*own, *(folder for folder in external_folders() if folder.exists())]


def _search(folder: Path, name: str) -> Any:
    """Class of this name in one folder, by nnU-Net's own look-up; None if there is none."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    nnunet = find_nnunet()
    is_own = nnunet is not None and folder == nnunet / _OWN
    with contextlib.redirect_stdout(io.StringIO()):
        return recursive_find_python_class(
            str(folder),
            name,
            "nnunetv2.training.nnUNetTrainer" if is_own else None,
            base_folder=str(nnunet if is_own else folder),
            cleanup_imports_from_base_folder=not is_own,
        )


def _blame(error: BaseException, folder: Path) -> Path:
    """File in the folder that an error came from; the folder if it cannot be told."""
    if isinstance(error, SyntaxError) and error.filename:
        return Path(error.filename)
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return next((file for file in reversed(frames) if file.is_relative_to(folder)), folder)


def _find(name: str) -> tuple[list[Finding], Any]:
    """One trainer: class, file, by which way, and what is wrong with its settings."""
    for folder in _search_folders():
        try:
            trainer = _search(folder, name)
        except (Exception, SystemExit) as error:  # the rule of names says what is wrong
            mend = "choose another trainer with -tr"
            return [Finding(PROBLEM, f"-tr {name}: {error}", mend)], None
        if trainer is not None:
            file = _file_of(trainer)
            # the rule of names answers for variants in other folders too
            home = next((f for f in _search_folders() if file.is_relative_to(f)), folder)
            found = _describe(name, trainer, home, file)
            return [found, *check_settings(trainer, file)], trainer
    return [_explain_missing(name)], None


def _file_of(trainer: Any) -> Path:
    try:
        return Path(inspect.getfile(trainer))
    except (TypeError, OSError):  # nnU-Net forgets modules of external folders after its search
        file = Path(*trainer.__module__.split(".")).with_suffix(".py")
        places = (folder / file for folder in external_folders())
        return next((place for place in places if place.is_file()), file)


def _describe(name: str, trainer: Any, folder: Path, file: Path) -> Finding:
    way = "nnUNet_extTrainer" if folder in external_folders() else "nnU-Net's own folder"
    if not hasattr(trainer, "mapo"):
        return Finding(NOTE, f"{name} trains without MAPO ({file})", f"-tr {name}_MAPO")
    bases = ", ".join(base.__name__ for base in trainer.__bases__)
    return Finding(OK, f"{name}({bases}), found through {way} {folder}; its class is in {file}")


def _explain_missing(name: str) -> Finding:
    what = f"nnU-Net finds no trainer {name}"
    if name != _PLAIN:
        mend = "put the folder of its file into nnUNet_extTrainer, or choose another with -tr"
        return Finding(PROBLEM, what, mend)
    try:
        configs = find_trainer_configs()
    except CommandError as error:
        return Finding(PROBLEM, f"{what}: {error}", say_reinstall())
    if not configs:  # nnU-Net has a folder of MAPO, without this trainer
        return Finding(PROBLEM, what, say_reinstall())
    return Finding(PROBLEM, what, say_external([*configs, *external_folders()]))


def check_settings(trainer: Any, file: Path) -> list[Finding]:
    """Say what is wrong with the settings of a trainer with MAPO.

    Args:
        trainer: Its class.
        file: Where the class is.
    """
    settings = getattr(trainer, "mapo", MAPOConfig())
    try:
        if not isinstance(settings, MAPOConfig):
            message = f"mapo is {settings!r}: a MAPOConfig(…) is needed"
            raise TypeError(message)
        settings.validate()
    except (TypeError, ValueError) as error:
        what = f"{trainer.__name__} cannot be trained with: {error}"
        return [Finding(PROBLEM, what, f"correct it in {file}")]
    return []
