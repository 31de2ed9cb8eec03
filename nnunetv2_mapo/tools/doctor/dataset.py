"""The training that is asked for, and whether its data set is planned, by names and JSON files."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, Finding, Problem
from nnunetv2_mapo.tools.doctor.machine import PREPROCESSED, RESULTS


@dataclass(frozen=True)
class Asked:
    """Training that is asked for.

    Attributes:
        dataset: Name or number, None if it is not known yet; of `find_dataset`, the name.
        configuration: None: `3d_fullres` where the plans have it, else `2d`.
        plans: Name of the plans.
        trainer: Name of the trainer.
        fold: Number, or `"all"`.
        device: What to train on; None: what there is.
    """

    dataset: str | None
    configuration: str | None
    plans: str
    trainer: str
    fold: str
    device: str | None = None

    @property
    def folder(self) -> Path:
        """`nnUNet_preprocessed/DATASET`."""
        return Path(os.environ[PREPROCESSED], self.dataset or "")

    @property
    def model(self) -> Path:
        """`nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`."""
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return Path(os.environ[RESULTS], self.dataset or "", model)

    @property
    def needs_split(self) -> bool:
        """Whether nnU-Net would write `splits_final.json`."""
        return self.fold != "all" and not (self.folder / "splits_final.json").is_file()

    def say_train(self, device: str) -> str:
        """Command that trains on a device; capitals where the user has to put something."""
        words = ["nnUNetv2_train", self.dataset or "DATASET", self.configuration or "CONFIGURATION"]
        words += [self.fold, "-tr", self.trainer]
        words += ["-p", self.plans] if self.plans != "nnUNetPlans" else []
        return shlex.join([*words, *(["-device", device] if device != "cuda" else [])])


def find_dataset(asked: Asked) -> Asked:
    """The same training with its data set and configuration as nnU-Net finds them.

    Raises:
        Problem: They are not there, or cannot be read.
    """
    there = sorted(path.name for path in Path(os.environ[PREPROCESSED]).glob("Dataset*"))
    choose = f"choose another with -d: {', '.join(there) or 'none is preprocessed'}"
    try:
        from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

        found = replace(asked, dataset=str(maybe_convert_to_dataset_name(asked.dataset)))
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).split(". ")[0]  # the rest lists nnU-Net's folders
        what = f"-d {asked.dataset}: {reason}"
        raise Problem(what, choose) from None
    plan = f"nnUNetv2_plan_and_preprocess -d {str(found.dataset)[7:10]} --verify_dataset_integrity"
    if asked.plans != "nnUNetPlans":
        plan += f" -pl PLANNER -overwrite_plans_name {shlex.quote(asked.plans)}"
    try:
        for name in ("dataset", "dataset_fingerprint", asked.plans):
            content = json.loads((found.folder / f"{name}.json").read_bytes())
        configurations = list(content["configurations"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        path = found.folder / f"{name}.json"
        what = f"{found.dataset} is not planned: {path} cannot be read ({type(error).__name__})"
        others = ", ".join(sorted(path.stem for path in found.folder.glob("*Plans*.json")))
        raise Problem(what, f"{plan}\n(or, with -p, other plans: {others}; or {choose})") from None
    default = "3d_fullres" if "3d_fullres" in configurations else "2d"
    found = replace(found, configuration=asked.configuration or default)
    if found.configuration not in configurations:
        what = f"{asked.plans} has no configuration {found.configuration}"
        raise Problem(what, f"choose one that it has with -c: {', '.join(configurations)}")
    return found


def describe_dataset(found: Asked) -> Finding:
    """Say what would be trained, and whether it was trained already."""
    fold = found.model / f"fold_{found.fold}"
    if any((fold / f"checkpoint_{each}.pth").is_file() for each in ("latest", "final")):
        what = f"{fold} holds a training already, which nnUNetv2_train would begin anew"
        return Finding(NOTE, what, "nnUNetv2_train … --c  (continues it)")
    return Finding(OK, f"{found.dataset}: {found.plans}, {found.configuration}")
