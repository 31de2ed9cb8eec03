"""A model as a plain one of nnU-Net: under which name, which files, which part of a checkpoint."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_mapo.guards.checkpoint import read_checkpoint
from nnunetv2_mapo.method.progress import register_keys
from nnunetv2_mapo.support.files import hash_file
from nnunetv2_mapo.support.weights import hash_weights
from nnunetv2_mapo.tools.export.plain_trainer import PlainTrainer, find_plain_trainer
from nnunetv2_mapo.tools.models import ModelError, TrainedModel, open_model

MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")
CROSSVALIDATION_FILES = ("summary.json", "postprocessing.json", "postprocessing.pkl")
FOLD_FILES = ("progress.png", "validation/summary.json")
_FOLD = re.compile(r"fold_(\d+|all)")


@dataclass(frozen=True)
class ModelExport:
    """A model that is to be exported, and what it becomes.

    Attributes:
        source: `nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        trainer_name: Trainer class that made it.
        plain: Trainer class of the exported model.
        dataset: Name of the data set.
        plans: Name of the plans.
        configuration: Name of the configuration.
        folds: Folds to export, each a number or `"all"`.
        checkpoint: File name of the checkpoint in the folder of each fold.
        is_cascade: Whether it needs the predictions of another model.
    """

    source: Path
    trainer_name: str
    plain: PlainTrainer
    dataset: str
    plans: str
    configuration: str
    folds: tuple[int | str, ...]
    checkpoint: str
    is_cascade: bool

    @property
    def target(self) -> str:
        """Folder of the exported model in `nnUNet_results`, with slashes."""
        return f"{self.dataset}/{self.plain.name}__{self.plans}__{self.configuration}"


def find_folds(
    folder: Path, checkpoint: str, chosen: Sequence[int | str] | None
) -> tuple[int | str, ...]:
    """Folds to export.

    Args:
        folder: Of the model.
        checkpoint: File name that each of them must have.
        chosen: Folds that are wanted; None for those that nnU-Net predicts with by default, which
            are all that have a number, or for `"all"` if it is the only one.

    Returns:
        In the order in which nnU-Net's names of folders list them.

    Raises:
        ModelError: There is no fold, or one of those that are there has no such checkpoint.
    """
    if chosen is not None:
        # opening them says what is missing
        return tuple(sorted(set(chosen), key=lambda fold: (fold == "all", fold)))
    names = [match[1] for path in folder.glob("fold_*") if (match := _FOLD.fullmatch(path.name))]
    found = sorted(int(name) for name in names if name != "all") or names
    missing = [fold for fold in found if not (folder / f"fold_{fold}" / checkpoint).is_file()]
    if missing:
        message = (
            f"fold_{missing[0]} in {folder} has no {checkpoint}: its training is not "
            "finished. Name the folds to export with -f, or another checkpoint with -chk."
        )
        raise ModelError(message)
    if not found:
        message = f"{folder} is no model folder: there is no fold_0, fold_1 … in it."
        raise ModelError(message)
    return tuple(found)


def plan_export(
    folder: Path, chosen_folds: Sequence[int | str] | None, checkpoint: str
) -> ModelExport:
    """Find out what a model becomes.

    Args:
        folder: `nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        chosen_folds: Folds that are wanted; None for those of `find_folds`.
        checkpoint: File name of the checkpoint.

    Raises:
        ModelError: It cannot be opened, or has no trainer without MAPO.
    """
    with _reading(folder):
        folds = find_folds(folder, checkpoint, chosen_folds)
        model = open_model(folder, folds[0], checkpoint, torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = recursive_find_trainer_class_by_name(model.trainer_name)
    return ModelExport(
        source=folder,
        trainer_name=model.trainer_name,
        plain=find_plain_trainer(trainer),
        dataset=model.plans_manager.dataset_name,
        plans=model.plans_manager.plans_name,
        configuration=model.configuration,
        folds=folds,
        checkpoint=checkpoint,
        is_cascade=model.configuration_manager.previous_stage_name is not None,
    )


def open_fold(export: ModelExport, fold: int | str, device: torch.device) -> TrainedModel:
    """Open a fold of the source.

    Raises:
        ModelError: It cannot be opened, or is of another training than the first fold.
    """
    with _reading(export.source):
        model = open_model(export.source, fold, export.checkpoint, device)
    opened = (model.trainer_name, model.configuration)
    expected = (export.trainer_name, export.configuration)
    if opened != expected:
        message = (
            f"Fold {fold} in {export.source} was trained as {', '.join(opened)}, fold "
            f"{export.folds[0]} as {', '.join(expected)}. nnU-Net takes them for one model: leave "
            "the wrong one out with -f."
        )
        raise ModelError(message)
    return model


def plain_checkpoint(checkpoint: dict[str, Any], trainer_name: str) -> dict[str, Any]:
    """What a training with another trainer, without MAPO, would have saved.

    Args:
        checkpoint: Of nnU-Net, with MAPO's key and logged values or without.
        trainer_name: Its new trainer.
    """
    ours: dict[str, list[Any]] = {}
    register_keys(ours, 0)
    logged = {key: values for key, values in checkpoint["logging"].items() if key not in ours}
    kept = {key: value for key, value in checkpoint.items() if key != "mapo"}
    return {**kept, "trainer_name": trainer_name, "logging": logged}


def export_fold(export: ModelExport, fold: int | str, target: Path) -> dict[str, Any]:
    """Write a fold's plain checkpoint and copy what nnU-Net's own export takes along.

    Args:
        export: The model.
        fold: One of its folds.
        target: Folder of the exported model.

    Returns:
        What is known of the fold, in JSON form.

    Raises:
        ModelError: Something cannot be read, or the checkpoint is damaged or not read back.
        OSError: Something cannot be written.
    """
    name = f"fold_{fold}"
    source, written = (folder / name / export.checkpoint for folder in (export.source, target))
    _copy(export.source / name, target / name, FOLD_FILES)
    written.parent.mkdir(parents=True, exist_ok=True)
    try:
        checkpoint = read_checkpoint(
            source, "Name another checkpoint with -chk.", needed=("current_epoch",)
        )
        save(plain_checkpoint(checkpoint, export.plain.name), written)
        weights = hash_weights(checkpoint["network_weights"])
        is_same = hash_weights(read_checkpoint(written)["network_weights"]) == weights
    except (ValueError, KeyError) as error:
        message = f"{source} cannot be exported: {error}"
        raise ModelError(message) from error
    if not is_same:
        message = f"The weights of {source} were not written as they are: is the disk all right?"
        raise ModelError(message)
    origin = checkpoint.get("mapo", {})
    return {
        "checkpoint": export.checkpoint,
        "epochs": checkpoint["current_epoch"],
        "sha256": hash_file(source),
        "sha256_of_weights": weights,
        "mapo": origin.get("config"),
        "base": _without_path(origin.get("base")),
    }


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint.

    Raises:
        OSError: It cannot be written.
    """
    try:
        torch.save(checkpoint, path)
    except RuntimeError as error:  # what torch says where a disk is full
        raise OSError(str(error)) from error


def copy_model_files(export: ModelExport, target: Path) -> None:
    """Copy what belongs to all folds together.

    Raises:
        ModelError: Something cannot be read.
        OSError: Something cannot be written.
    """
    results = f"crossval_results_folds_{folds_tuple_to_string(export.folds)}"
    of_folds = (f"{results}/{name}" for name in CROSSVALIDATION_FILES)
    _copy(export.source, target, (*MODEL_FILES, *of_folds))


def write_zip(folder: Path, path: Path) -> None:
    """Write a zip file of everything in a folder, as nnU-Net's import takes it.

    Raises:
        OSError: It cannot be written.
    """
    # Not compressed: measured on a checkpoint of 207 MB, deflating saves 7 % and takes 29 s, not 1.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        with _reading(source / name):
            if not (source / name).is_file():
                continue
            content = (source / name).read_bytes()
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell what cannot be read from what cannot be written, which is an OSError as well."""
    try:
        yield
    except OSError as error:
        message = f"{path} cannot be read: {error}"
        raise ModelError(message) from error


def _without_path(base: dict[str, Any] | None) -> dict[str, Any] | None:
    """Origin of a fine-tuned model, without what is about the machine it was trained on."""
    if base is None:
        return None
    kept = {key: value for key, value in base.items() if key != "path"}
    return {**kept, "base": _without_path(base.get("base"))}
