"""Methods on the same cases: what their folders hold, and what their trainings cost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nnunetv2_mapo.guards.checkpoint import LATEST
from nnunetv2_mapo.tools.evaluate import (
    METRICS_JSON,
    SUMMARY_JSON,
    Evaluation,
    merge_evaluations,
    read_evaluation,
)
from nnunetv2_mapo.tools.evaluate.case_metrics import EvaluationError
from nnunetv2_mapo.tools.history import History, HistoryError, read_history

_COLUMNS = {"metric", "case", "class", "method"}  # of the tables in which methods are columns, too


class ComparisonError(RuntimeError):
    """Folders that cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class Method:
    """A method of a comparison.

    Attributes:
        folder: Model folder, or a folder of segmentations.
        name: Of the trainer, or of the folder where that does not tell the methods apart.
        evaluation: Metrics of every case of all its folds.
        histories: Training of each fold, by the fold's name; None where it cannot be read, or the
            folder is not named like a model's. Empty for a folder of segmentations.
    """

    folder: Path
    name: str
    evaluation: Evaluation
    histories: dict[str, History | None]


def read_methods(folders: Sequence[Path], folds: Sequence[int | str] | None = None) -> list[Method]:
    """Read the methods in the order of their folders.

    Args:
        folders: Model folders, or folders of segmentations with `metrics.json` or `summary.json`.
        folds: Folds to compare; None: all, which must be the same ones.

    Raises:
        ComparisonError: The folders, their folds, cases, classes or metrics cannot be compared.
    """
    names, results = name_methods(folders), _find_results(folders, folds)
    paths = [path for found in results for path in found.values()]
    lack = [str(path) for path in paths if not (path / METRICS_JSON).is_file()]
    file = SUMMARY_JSON if lack else METRICS_JSON
    if only := [str(path) for path in paths if not (path / file).is_file()]:
        message = (
            f"{', '.join(only)} has only {METRICS_JSON}, which others do not have. Make it with "
            f"nnUNetv2_mapo evaluate for {', '.join(lack)}."
        )
        raise ComparisonError(message)
    try:
        methods = [
            Method(folder, name, _read_folds(found, file), _read_histories(found))
            for folder, name, found in zip(folders, names, results, strict=True)
        ]
    except EvaluationError as error:
        raise ComparisonError(str(error)) from error
    check_same(methods)
    return methods


def _find_results(
    folders: Sequence[Path], wanted: Sequence[int | str] | None
) -> list[dict[str, Path]]:
    """Where each folder holds the results of each fold; of a folder of segmentations, fold `""`."""
    results = [_find_folds(folder) for folder in folders]
    chosen = {str(fold) for fold in wanted or {fold for found in results for fold in found}}
    if wanted is None and chosen - {""} != {"all"}:
        # fold_all validates on its training cases: only those who ask for it compare it
        chosen.discard("all")
    models = {f: found for f, found in zip(folders, results, strict=True) if "" not in found}
    for folder, found in models.items():
        if wanted and (missing := sorted(chosen - {""} - {*found})):
            message = (
                f"Fold {', '.join(missing)} of {folder} has no finished validation; finished: "
                f"{', '.join(found)}."
            )
            raise ComparisonError(message)
    if any(not chosen - {""} <= {*found} for found in models.values()):
        lines = "; ".join(f"{folder}: {', '.join(found)}" for folder, found in models.items())
        common = " ".join(sorted(set.intersection(*({*found} for found in models.values()))))
        advice = f"Compare with -f {common}" if common else "They share none"
        message = f"The finished folds are not the same: {lines}. {advice}."
        raise ComparisonError(message)
    for folder in models:
        for fold in chosen - {""}:
            _check_latest(folder / f"fold_{fold}")
    return [{f: path for f, path in found.items() if f in {*chosen, ""}} for found in results]


def _find_folds(folder: Path) -> dict[str, Path]:
    # Earlier versions wrote metrics into fold_X itself if these were to go to another folder.
    places = {
        path.name.removeprefix("fold_"): [path, path / "validation"]
        for path in sorted(folder.glob("fold_*"))
    } or {"": [folder]}
    found = {
        fold: path
        for fold, paths in places.items()
        for path in paths  # the last one counts
        if (path / METRICS_JSON).is_file() or (path / SUMMARY_JSON).is_file()
    }
    if not found:
        message = (
            f"{folder} has neither {METRICS_JSON} nor {SUMMARY_JSON}, nor a fold_X/validation "
            "with one of them. Give a model folder TRAINER__PLANS__CONFIGURATION whose "
            "validation is finished, or a folder that nnUNetv2_mapo evaluate was run on."
        )
        raise ComparisonError(message)
    return found


def _check_latest(fold: Path) -> None:
    """Refuse a fold that was trained on after its validation: that is of an earlier training."""
    summary, latest = fold / "validation" / SUMMARY_JSON, fold / LATEST
    both = summary.is_file() and latest.is_file()
    if both and summary.stat().st_mtime < latest.stat().st_mtime:
        message = (
            f"{fold} is being trained anew: {LATEST} is newer than its validation, which is of an "
            "earlier training. Compare it when it is finished, or other folds with -f."
        )
        raise ComparisonError(message)


def name_methods(folders: Sequence[Path]) -> list[str]:
    """Shortest names that tell the folders apart: trainer, folder, whole path.

    Raises:
        ComparisonError: A folder is given twice.
    """
    # resolve() would follow links, and the name of a link is the one that was given
    paths = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100
    for names in (
        [path.name.split("__")[0] for path in paths],
        [path.name for path in paths],
        [str(path) for path in paths],
    ):
        if len(set(names)) == len(names) and not {*names} & _COLUMNS:
            return names
    message = "A folder is given twice: give each method once."
    raise ComparisonError(message)


def _read_folds(results: Mapping[str, Path], file: str) -> Evaluation:
    parts = {fold: read_evaluation(path / file) for fold, path in results.items()}
    for fold, path in results.items():
        if (path / SUMMARY_JSON).is_file():
            _check_fresh(parts[fold].values["Dice"], path)
    _check_provenance({f"fold {fold}": part for fold, part in parts.items()})
    return merge_evaluations(parts)


def _check_fresh(dice: pd.Series, folder: Path) -> None:
    """Refuse metrics of other segmentations than those that nnU-Net evaluated last."""
    theirs = read_evaluation(folder / SUMMARY_JSON).values["Dice"]
    mine = dice.reindex(theirs.index)
    differs = ~np.isclose(mine, theirs, rtol=0, atol=1e-6, equal_nan=True)
    if differs.any():
        key = theirs.index[differs][0]
        message = (
            f"{folder / METRICS_JSON} is not of the segmentations that {SUMMARY_JSON} is of: Dice "
            f"of {key[0]} is {mine[key]:.4f}, but {theirs[key]:.4f} there. Run nnUNetv2_mapo "
            "evaluate again."
        )
        raise ComparisonError(message)


def _read_histories(results: Mapping[str, Path]) -> dict[str, History | None]:
    histories: dict[str, History | None] = {}
    for fold, path in results.items():
        if fold:
            histories[fold] = None
            # without its checkpoints, the results remain
            with contextlib.suppress(HistoryError):
                is_model = path.parent.parent.resolve().name.count("__") == 2
                histories[fold] = read_history(path.parent) if is_model else None
    return histories


def _check_provenance(parts: Mapping[str, Evaluation]) -> None:
    """Refuse evaluations that were not made in the same way, and name what differs."""
    table = pd.DataFrame({name: part.provenance for name, part in parts.items()})
    table = table.drop(index="versions", errors="ignore")  # the other entries name what measures
    different = table[table.nunique(axis="columns", dropna=False) > 1]
    if len(different):
        message = (
            f"These were not evaluated in the same way:\n{different.to_string()}\n"
            "Run nnUNetv2_mapo evaluate on all of them in the same way."
        )
        raise ComparisonError(message)


def check_same(methods: Sequence[Method]) -> None:
    """Refuse methods that were evaluated in different ways, or on different cases or classes.

    Raises:
        ComparisonError: It names what differs.
    """
    _check_provenance({method.name: method.evaluation for method in methods})
    for level, plural in (("class", "classes"), ("case", "cases")):
        keys = {each.name: {*each.evaluation.values.index.unique(level)} for each in methods}
        every = set().union(*keys.values())
        lacks = [f"{name} lacks {', '.join(sorted(every - its))}"
                 for name, its in keys.items() if its != every]  # fmt: skip
        if lacks:
            message = (
                f"The methods do not have the same {plural}: {'; '.join(lacks)}. Only the same "
                "ones can be compared."
            )
            raise ComparisonError(message)


def note_sources(methods: Sequence[Method]) -> list[str]:
    """Where the numbers come from, and how to get those that are missing."""
    notes = ["Each case counts once in a metric: with the mean over its classes."]
    if folds := next((method.histories for method in methods if method.histories), None):
        notes.insert(0, f"Final validation of fold {', '.join(folds)}.")
    if provenance := methods[0].evaluation.provenance:
        return [*notes, f"{provenance['implementation']}; NSD within {provenance['tolerance']}."]
    advice = "for all metrics, run nnUNetv2_mapo evaluate on each folder first."
    return [*notes, f"Dice and IoU only, from nnU-Net's summary.json; {advice}"]
