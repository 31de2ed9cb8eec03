"""Whether the preprocessed cases and their split can be trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_mapo.checks import (
    NUM_FOLDS,
    InputError,
    check_enough_for_folds,
    check_foreground,
    check_preprocessed,
    check_split,
)
from nnunetv2_mapo.doctor.dataset import Asked, Prepared
from nnunetv2_mapo.doctor.finding import NOTE, OK, PROBLEM, Finding, last_line, say_command
from nnunetv2_mapo.doctor.folders import RESULTS, find_folder


class Split(NamedTuple):
    """Cases of a fold.

    Attributes:
        training: Identifiers of the training cases.
        validation: Those of the validation cases.
        note: What is unusual about them, empty where nothing is.
    """

    training: Sequence[str]
    validation: Sequence[str]
    note: str = ""


def check_cases(prepared: Prepared, asked: Asked) -> tuple[list[Finding], Sequence[str]]:
    """Check preprocessed cases, split and foreground as the trainer would.

    Returns:
        Findings and the training cases, none of them after a problem.
    """
    folder, splits_file = prepared.cases, prepared.folder / "splits_final.json"
    try:
        check_preprocessed(folder, prepared.name, prepared.configuration)
        dataset_class = infer_dataset_class(str(folder))
        available = sorted(dataset_class.get_identifiers(str(folder)))
    except (InputError, AssertionError, KeyError) as error:
        what = f"{prepared.name}: {error}" if isinstance(error, AssertionError) else str(error)
        return [Finding(PROBLEM, what, say_preprocess(prepared, asked))], []
    try:
        split = read_split(splits_file, available, asked.fold)
        check_split(split.training, split.validation, available, str(splits_file))
        check_foreground(dataset_class(str(folder), list(split.training)))
    except InputError as error:
        return [Finding(PROBLEM, str(error), say_preprocess(prepared, asked))], []
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{splits_file} cannot be read: {last_line(error)}"
        mend = f"correct it, or delete it: nnU-Net then makes {NUM_FOLDS} folds"
        return [Finding(PROBLEM, what, mend)], []
    numbers = f"{len(split.training)} training and {len(split.validation)} validation cases"
    findings = [Finding(OK, f"fold {asked.fold}: {numbers}")]
    if split.note:
        findings.append(Finding(NOTE, split.note, "choose one of the others with -f"))
    return [*findings, *check_previous_stage(prepared, asked, available)], split.training


def say_preprocess(prepared: Prepared, asked: Asked) -> str:
    """Command that preprocesses a data set for a configuration."""
    number = str(int(prepared.name[7:10]))
    return say_command(
        "nnUNetv2_preprocess", "-d", number, "-plans_name", asked.plans,
        "-c", prepared.configuration,
    )  # fmt: skip


def read_split(splits_file: Path, available: Sequence[str], fold: str) -> Split:
    """Cases of a fold by `splits_final.json`, or by the rules that nnU-Net has without it.

    Args:
        splits_file: May be missing.
        available: Preprocessed cases.
        fold: Number, or `"all"`.

    Raises:
        InputError: There are fewer cases than folds.
    """
    if fold == "all":
        return Split(available, available)
    splits: Any = json.loads(splits_file.read_bytes()) if splits_file.is_file() else None
    if splits is None:
        check_enough_for_folds(available, splits_file)
        splits = generate_crossval_split(list(available), seed=12345, n_splits=NUM_FOLDS)
    if int(fold) < len(splits):
        return Split(splits[int(fold)]["train"], splits[int(fold)]["val"])
    first_validation = int(0.8 * len(available))
    note = (
        f"the split has {len(splits)} folds; nnU-Net draws fold {fold} at random, 80 % for training"
    )
    return Split(available[:first_validation], available[first_validation:], note)


def check_previous_stage(
    prepared: Prepared, asked: Asked, available: Sequence[str]
) -> list[Finding]:
    """Whether a cascade has the predictions of the stage before it."""
    results = find_folder(RESULTS)
    if not prepared.previous_stage or results is None:
        return []
    model = f"{asked.trainer}__{asked.plans}__{prepared.previous_stage}"
    folder = results / prepared.name / model / "predicted_next_stage" / prepared.configuration
    there = {path.stem for path in folder.glob("*")}
    missing = [case for case in available if case not in there]
    if not missing:
        return [Finding(OK, f"predictions of {prepared.previous_stage} for the cascade: {folder}")]
    what = f"the cascade lacks predictions of {prepared.previous_stage} for {len(missing)} cases"
    earlier = say_command(
        "nnUNetv2_train", prepared.name, prepared.previous_stage, "FOLD", "-tr", asked.trainer,
        "-p", asked.plans,
    )  # fmt: skip
    return [Finding(PROBLEM, f"{what} in {folder}", f"{earlier}  (for each FOLD from 0 to 4)")]
