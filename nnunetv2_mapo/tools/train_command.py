"""Commands that are printed for the user to train with: what is called how, and what is done."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

_PREPROCESSED = "nnUNet_preprocessed"


class ModelName(NamedTuple):
    """What nnU-Net's commands call a model by."""

    dataset: str
    trainer: str
    plans: str
    configuration: str


def name_of(model: Path) -> ModelName | None:
    """Name of a model by its folder `TRAINER__PLANS__CONFIGURATION`; None of another folder."""
    parts = follow(model).name.split("__")
    return ModelName(dataset_of(model), *parts) if len(parts) == 3 else None


def dataset_of(model: Path) -> str:
    """Data set of a model's folder, wherever it was moved."""
    folder = follow(model)
    return _read_json(folder / "plans.json").get("dataset_name") or folder.parent.name


def follow(model: Path) -> Path:
    """Folder that a link leads to, but for one that is named like a model itself."""
    named = Path(os.path.abspath(model))  # noqa: PTH100
    return named if named.name.count("__") == 2 else named.resolve()


def say_train(name: ModelName, fold: int | str, device: str = "") -> str:
    """Command that trains; without a device on nnU-Net's default, a GPU."""
    words = ["nnUNetv2_train", name.dataset, name.configuration, str(fold), "-tr", name.trainer]
    words += ["-p", name.plans] if name.plans != "nnUNetPlans" else []
    return shlex.join([*words, *(["-device", device] if device not in ("", "cuda") else [])])


def find_beside(model: Path, name: ModelName) -> Path:
    """Folder of another model of the same data set, trained or not."""
    return follow(model).with_name("__".join(name[1:]))


def say_finish(model: Path, name: ModelName, fold: int | str) -> str:
    """Command after which a fold has a finished validation; empty if it has one.

    Nothing that was trained is begun anew: a training is continued, a finished one validated.

    Args:
        model: Folder of the model or of one beside it.
        name: Of the model.
        fold: Of it, trained or not.
    """
    folder = find_beside(model, name)
    files = folder / f"fold_{fold}"
    if (files / "validation" / "summary.json").is_file():
        return ""
    command = say_train(name, fold, find_device(folder) or find_device(model))
    if (files / "checkpoint_final.pth").is_file():  # else nnU-Net refuses --val
        return f"{command} --val"
    return f"{command} --c" if any(files.glob("checkpoint_*.pth")) else command


def count_folds(dataset: str) -> int:
    """Folds of a data set's split; 0 if that is not on this machine."""
    return len(_read_json(Path(os.environ.get(_PREPROCESSED, ""), dataset, "splits_final.json")))


def find_device(model: Path) -> str:
    """Kind of device that a model's last fold was trained on; empty if unknown."""
    debug = _read_json(max(model.glob("fold_*/debug.json"), default=model))
    return str(debug.get("device", "")).partition(":")[0]


def _read_json(path: Path) -> Any:
    """Content of a file; nothing if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
