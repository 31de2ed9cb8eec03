"""Whether a data set is ready to be trained on, from the names and JSON files in its folders."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding, last_line, say_command
from nnunetv2_mapo.tools.doctor.folders import PREPROCESSED, RAW, RESULTS, find_folder

_PLANNERS = {
    "nnUNetPlans": [],
    "nnUNetResEncUNetMPlans": ["-pl", "nnUNetPlannerResEncM"],
    "nnUNetResEncUNetLPlans": ["-pl", "nnUNetPlannerResEncL"],
    "nnUNetResEncUNetXLPlans": ["-pl", "nnUNetPlannerResEncXL"],
}


@dataclass(frozen=True)
class Asked:
    """What the user wants to train.

    Attributes:
        dataset: Name or number of the data set; None if it is not known yet.
        configuration: None: `3d_fullres` where the plans have it.
        plans: Name of the plans.
        trainer: Name of the trainer.
        fold: Number, or `"all"`.
        device: What to compute on; None: what there is.
    """

    dataset: str | None
    configuration: str | None
    plans: str
    trainer: str
    fold: str
    device: str | None = None

    def say_train(self, device: str) -> str:
        """Command that trains on a device; capitals where the user has to put something."""
        words = [
            "nnUNetv2_train",
            self.dataset or "DATASET",
            self.configuration or "CONFIGURATION",
            self.fold,
            "-tr",
            self.trainer,
        ]
        words += ["-p", self.plans] if self.plans != "nnUNetPlans" else []
        return say_command(*words, *(["-device", device] if device != "cuda" else []))


@dataclass(frozen=True)
class Prepared:
    """A data set that is planned.

    Attributes:
        name: `DatasetXXX_Name`.
        folder: `nnUNet_preprocessed/DatasetXXX_Name`.
        configuration: Name of the configuration.
    """

    name: str
    folder: Path
    configuration: str

    def results(self, asked: Asked) -> Path:
        """Folder of the fold in `nnUNet_results`."""
        model = f"{asked.trainer}__{asked.plans}__{self.configuration}"
        return Path(os.environ.get(RESULTS, ""), self.name, model, f"fold_{asked.fold}")

    def is_split_needed(self, asked: Asked) -> bool:
        """Whether nnU-Net would write `splits_final.json`."""
        return asked.fold != "all" and not (self.folder / "splits_final.json").is_file()

    def say_nnunet(self, command: str, *words: str) -> str:
        """A command of nnU-Net that takes the number of the data set."""
        return say_command(command, "-d", str(int(self.name[7:10])), *words)


class _Missing(Exception):  # noqa: N818  # no error of the program: it ends a look-up
    """What is not there, as a problem."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.finding = Finding(PROBLEM, what, mend)


def check_dataset(asked: Asked) -> tuple[list[Finding], Prepared | None]:
    """Look for data set, plans and configuration.

    Args:
        asked: With a data set.

    Returns:
        Findings; the data set where all of them are there.
    """
    try:
        name = find_name(asked.dataset or "")
        folder = _find_preprocessed(name, asked)
        configuration = _find_configuration(_read_plans(folder, name, asked), asked)
    except _Missing as missing:
        return [missing.finding], None
    except OSError as error:
        return [Finding(PROBLEM, f"-d {asked.dataset}: {last_line(error)}")], None
    prepared = Prepared(name, folder, configuration)
    findings = [Finding(OK, f"{name}: {asked.plans}, {configuration}")]
    findings += _check_fingerprint(prepared) + _check_earlier(prepared.results(asked))
    if _subfolder(RAW, name) is None:
        what = f"{name} is not in nnUNet_raw: it can be trained on, but not planned anew"
        findings.append(Finding(NOTE, what))
    return findings, prepared


def find_name(asked: str) -> str:
    """Folder name of the data set that nnU-Net would take for a name or a number."""
    if re.fullmatch(r"Dataset\d{3}_.+", asked):
        return asked
    if not asked.isdecimal():
        what = f"-d {asked}: a number such as 4, or a name such as Dataset004_Heart, is needed"
        raise _Missing(what, _say_available())
    names = sorted({name for name in _list_names() if name.startswith(f"Dataset{int(asked):03d}")})
    if not names:
        what = f"no data set {asked} in {RAW} or {PREPROCESSED}"
        raise _Missing(what, _say_available())
    if len(names) > 1:
        what = f"-d {asked} could be {' or '.join(names)}, which nnU-Net refuses"
        raise _Missing(what, "give all but one another number, in each of nnU-Net's three folders")
    return names[0]


def _list_names() -> list[str]:
    folders = [folder for name in (RAW, PREPROCESSED, RESULTS) if (folder := find_folder(name))]
    found = (path for folder in folders for path in folder.glob("Dataset*"))
    return sorted({path.name for path in found if path.is_dir()})


def _say_available() -> str:
    return (
        f"choose one of those that are there: {', '.join(_list_names()) or 'none'}; a new one goes "
        f"to {RAW}/DatasetXXX_NAME, see "
        "https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md"
    )


def _subfolder(variable: str, name: str) -> Path | None:
    folder = find_folder(variable)
    return folder / name if folder and (folder / name).is_dir() else None


def _find_preprocessed(name: str, asked: Asked) -> Path:
    folder = _subfolder(PREPROCESSED, name)
    if folder and (folder / "dataset.json").is_file():
        return folder
    if _subfolder(RAW, name) is None:
        what = f"{name} is neither in {RAW} nor in {PREPROCESSED}"
        raise _Missing(what, _say_available())
    what = f"{name} is not planned and preprocessed yet"
    raise _Missing(what, _say_plan(name, asked.plans))


def _say_plan(name: str, plans: str) -> str:
    planner = _PLANNERS.get(plans, ["-overwrite_plans_name", plans])
    number = str(int(name[7:10]))
    command = ["nnUNetv2_plan_and_preprocess", "-d", number, "--verify_dataset_integrity"]
    return say_command(*command, *planner)


def _read_plans(folder: Path, name: str, asked: Asked) -> dict[str, Any]:
    """Configurations of the plans."""
    path = folder / f"{asked.plans}.json"
    try:
        configurations: dict[str, Any] = json.loads(path.read_bytes())["configurations"]
    except FileNotFoundError:
        others = [other for other in map(_plans_name, sorted(folder.glob("*.json"))) if other]
        there = f"; there are {', '.join(others)}, to be chosen with -p" if others else ""
        what = f"{name} has no plans {asked.plans}{there}"
        raise _Missing(what, _say_plan(name, asked.plans)) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{path} cannot be read: {last_line(error)}"
        raise _Missing(what, f"correct it, or plan anew: {_say_plan(name, asked.plans)}") from None
    return configurations


def _plans_name(path: Path) -> str:
    """Name of plans by their file; empty for another file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return ""
    return path.stem if isinstance(content, dict) and "configurations" in content else ""


def _find_configuration(plans: dict[str, Any], asked: Asked) -> str:
    name = asked.configuration or ("3d_fullres" if "3d_fullres" in plans else "2d")
    if name not in plans:
        what = f"{asked.plans} has no configuration {name}"
        raise _Missing(what, f"choose one that it has with -c: {', '.join(plans)}")
    return name


def _check_fingerprint(prepared: Prepared) -> list[Finding]:
    path = prepared.folder / "dataset_fingerprint.json"
    if path.is_file():
        return []
    what = f"{path} is missing, which nnU-Net copies when a training begins"
    return [Finding(PROBLEM, what, prepared.say_nnunet("nnUNetv2_extract_fingerprint"))]


def _check_earlier(fold: Path) -> list[Finding]:
    """Say where a training of the same fold would be begun anew."""
    if not any((fold / f"checkpoint_{each}.pth").is_file() for each in ("latest", "final")):
        return []
    what = f"{fold} holds a training already, which nnUNetv2_train would begin anew"
    return [Finding(NOTE, what, "nnUNetv2_train … --c  (continues it)")]
