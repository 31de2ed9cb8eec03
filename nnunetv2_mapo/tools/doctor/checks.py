"""What is asked for, and the checks that need no PyTorch: versions, folders, data set."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import nnunetv2_mapo
from nnunetv2_mapo.support.table import WIDTH, wrap
from nnunetv2_mapo.tools.train_command import ModelName, say_train

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
_INDENT = 9  # characters before what a check saw
RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"


class Finding(NamedTuple):
    """What a check saw; a training can start unless the level is `PROBLEM`."""

    level: str
    what: str
    mend: str = ""  # command that mends it, or what to do

    def __str__(self) -> str:
        """Level and what in columns, what mends it below, indented."""
        what = "\n".join(wrap(line, WIDTH - _INDENT) for line in self.what.splitlines())
        lines = [*what.splitlines(), *(f"  {line}" for line in self.mend.splitlines())]
        return f"{self.level:{_INDENT}}" + f"\n{'':{_INDENT}}".join(lines)


class Problem(Exception):  # noqa: N818  # no error of the program: it ends the checks
    """A problem behind which nothing can be checked; arguments are `what` and `mend`."""


@dataclass(frozen=True)
class Asked:
    """Training that is asked for."""

    dataset: str | None  # name or number, None if it is not known yet; of `find_dataset`, the name
    configuration: str | None  # None: `3d_fullres` where the plans have it, else `2d`
    plans: str
    trainer: str
    fold: int | str  # number, or "all"
    device: str | None = None  # what to train on; None: what there is

    @property
    def folder(self) -> Path:
        """`nnUNet_preprocessed/DATASET`."""
        return Path(os.environ[PREPROCESSED], self.dataset or "")

    def say_train(self, device: str) -> str:
        """Command that trains on a device; capitals where the user has to put something."""
        dataset, configuration = self.dataset or "DATASET", self.configuration or "CONFIGURATION"
        return say_train(
            ModelName(dataset, self.trainer, self.plans, configuration), self.fold, device
        )


def describe_versions() -> Finding:
    """Versions of what a training runs on, by their metadata."""
    others = (f"{name} {metadata.version(name)}" for name in ("nnunetv2", "torch"))
    own = f"nnunetv2-mapo {nnunetv2_mapo.__version__}"
    return Finding(OK, ", ".join([f"Python {platform.python_version()}", own, *others]))


def check_folder(variable: str, *, is_needed: bool = True) -> Finding:
    """Check that an environment variable names a folder; without need its lack is a note."""
    value = os.environ.get(variable)
    level = PROBLEM if is_needed else NOTE
    if not value:
        mend = f"export {variable}=FOLDER  (in ~/.bashrc for every terminal)"
        return Finding(level, f"{variable} is not set", mend)
    otherwise = f"(or name another: export {variable}=FOLDER)"
    if not Path(value).is_dir():
        mend = f"mkdir -p {shlex.quote(value)}  {otherwise}"
        return Finding(level, f"{variable}={value} is not a folder", mend)
    if variable == RESULTS and not os.access(value, os.W_OK):
        mend = f"change who may write there  {otherwise}"
        return Finding(level, f"{variable}={value} cannot be written to", mend)
    return Finding(OK, f"{variable}={value}, {shutil.disk_usage(value).free / 1e9:.1f} GB free")


def find_dataset(asked: Asked) -> Asked:
    """The same training with its data set and configuration as nnU-Net finds them, or `Problem`."""
    there = sorted(path.name for path in Path(os.environ[PREPROCESSED]).glob("Dataset*"))
    choose = f"choose another with -d: {', '.join(there) or 'none is preprocessed'}"
    try:
        from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

        found = replace(asked, dataset=str(maybe_convert_to_dataset_name(asked.dataset)))
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).split(". ")[0]  # the rest lists nnU-Net's folders
        what = f"-d {asked.dataset}: {reason}"
        raise Problem(what, choose) from None
    path = found.folder / f"{found.plans}.json"
    try:
        configurations = list(json.loads(path.read_bytes())["configurations"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{found.dataset} is not planned: {path} cannot be read ({type(error).__name__})"
        others = ", ".join(sorted(path.stem for path in found.folder.glob("*Plans*.json")))
        number = str(found.dataset)[7:10]
        plan = f"nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity"
        if size := re.fullmatch(r"nnUNetResEncUNet(M|L|XL)Plans", found.plans):
            plan += f" -pl nnUNetPlannerResEnc{size[1]}"
        raise Problem(what, f"{plan}\n(or, with -p, other plans: {others}; or {choose})") from None
    default = "3d_fullres" if "3d_fullres" in configurations else "2d"
    found = replace(found, configuration=asked.configuration or default)
    if found.configuration not in configurations:
        what = f"{asked.plans} has no configuration {found.configuration}"
        raise Problem(what, f"choose one that it has with -c: {', '.join(configurations)}")
    return found
