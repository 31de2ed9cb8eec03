"""The methods of a comparison: what their folders hold, and what their trainings cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_mapo.comparison import Direction, MetricComparison, compare
from nnunetv2_mapo.evaluation import (
    METRICS_JSON,
    Evaluation,
    EvaluationError,
    merge_evaluations,
    read_evaluation,
    title_of,
)
from nnunetv2_mapo.history import History, HistoryError, read_history
from nnunetv2_mapo.metrics import METRICS

SUMMARY_JSON = "summary.json"
_NOT_COMPARED = "versions"  # of every package; what measures is named by the other entries
Results = Mapping[str, Path]  # fold, or "" of a folder of segmentations -> folder of its results


class ComparisonError(RuntimeError):
    """Folders that cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class Method:
    """A method of a comparison.

    Attributes:
        name: Of the trainer, or of the folder where that does not tell the methods apart.
        evaluation: Metrics of every case of all its folds.
        histories: Training of each fold, by the fold's name; None where it cannot be read. Empty
            for a folder of segmentations.
    """

    name: str
    evaluation: Evaluation
    histories: dict[str, History | None]


def read_methods(folders: Sequence[Path], wanted: Sequence[str] | None = None) -> list[Method]:
    """Read the methods in the order of their folders.

    Args:
        folders: Model folders, or folders of segmentations with `metrics.json` or `summary.json`.
        wanted: Folds to compare; None: all, which must be the same ones.

    Raises:
        ComparisonError: The folders, their folds, classes or metrics cannot be compared.
    """
    results = find_results(folders, wanted)
    name = METRICS_JSON if not find_without_metrics(results.values()) else SUMMARY_JSON
    names = name_methods(folders)
    methods = [
        Method(title, _read_folds(found, name), _read_histories(found))
        for title, found in zip(names, results.values(), strict=True)
    ]
    check_same(methods)
    return methods


def find_results(folders: Sequence[Path], wanted: Sequence[str] | None) -> dict[Path, Results]:
    """Folders that hold the results of each fold.

    Raises:
        ComparisonError: There are none, or the folds are not the same.
    """
    found = {folder: _find_folds(folder) for folder in folders}
    if len(found) < len(folders):
        message = "A folder is given twice: give each method once."
        raise ComparisonError(message)
    for folder, results in found.items():
        if not results:
            message = (
                f"{folder} has neither {METRICS_JSON} nor {SUMMARY_JSON}, nor a fold_X/validation "
                "with one of them. Give a model folder TRAINER__PLANS__CONFIGURATION whose "
                "validation is finished, or a folder that nnUNetv2_mapo evaluate was run on."
            )
            raise ComparisonError(message)
    models = {folder: set(results) for folder, results in found.items() if "" not in results}
    if wanted is None:
        # fold_all validates on its training cases: only those who ask for it compare it
        models = {folder: folds - {"all"} or folds for folder, folds in models.items()}
    chosen = set(wanted or set().union(*models.values()))
    if any(not chosen <= folds for folds in models.values()):
        lines = [f"{folder}: {', '.join(sorted(folds))}" for folder, folds in models.items()]
        common = sorted(set.intersection(*models.values()))
        advice = f"Compare with -f {' '.join(common)}" if common else "They share none"
        message = f"The finished folds are not the same: {'; '.join(lines)}. {advice}."
        raise ComparisonError(message)
    return {
        folder: {fold: path for fold, path in results.items() if fold in chosen or not fold}
        for folder, results in found.items()
    }


def _find_folds(folder: Path) -> Results:
    names = (METRICS_JSON, SUMMARY_JSON)
    folds = {
        path.name.removeprefix("fold_"): path / "validation"
        for path in sorted(folder.glob("fold_*"))
    } or {"": folder}
    return {
        fold: path for fold, path in folds.items() if any((path / name).is_file() for name in names)
    }


def find_without_metrics(results: Iterable[Results]) -> list[Path]:
    """Folders of results without a `metrics.json`."""
    return [
        path for folds in results for path in folds.values() if not (path / METRICS_JSON).is_file()
    ]


def name_methods(folders: Sequence[Path]) -> list[str]:
    """Shortest names that tell the folders apart: trainer, folder, whole path."""
    paths = [folder.absolute() for folder in folders]
    candidates = ([path.name.split("__")[0] for path in paths], [path.name for path in paths])
    for names in candidates:
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_folds(results: Results, name: str) -> Evaluation:
    try:
        if name == SUMMARY_JSON:
            parts = {fold: read_summary(path / name) for fold, path in results.items()}
        else:
            parts = {fold: read_evaluation(path / name) for fold, path in results.items()}
            for fold, path in results.items():
                _check_fresh(path, parts[fold])
        _check_provenance(parts)
        return merge_evaluations(parts)
    except EvaluationError as error:
        raise ComparisonError(str(error)) from error


def read_summary(path: Path) -> Evaluation:
    """Read nnU-Net's `summary.json`: Dice and IoU.

    Raises:
        ComparisonError: It is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        values = {
            _case_of(entry["prediction_file"]): {
                key: {name: float(metrics[name]) for name in ("Dice", "IoU")}
                for key, metrics in entry["metrics"].items()
            }
            for entry in content["metric_per_case"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = (
            f"{path} is not nnU-Net's summary of an evaluation ({type(error).__name__}: {error}). "
            "Make it anew with nnUNetv2_train … --val or nnUNetv2_evaluate_folder."
        )
        raise ComparisonError(message) from error
    return Evaluation(values, provenance={})


def _case_of(file: str) -> str:
    name = re.split(r"[\\/]", file)[-1]  # of a path of any operating system
    return name.removesuffix(".gz").rpartition(".")[0]


def _check_fresh(folder: Path, evaluation: Evaluation) -> None:
    """Refuse metrics of segmentations that nnU-Net has made anew since.

    Raises:
        ComparisonError: The Dice in `metrics.json` is not that in `summary.json`.
    """
    if not (folder / SUMMARY_JSON).is_file():
        return
    for case, classes in read_summary(folder / SUMMARY_JSON).values.items():
        for key, metrics in classes.items():
            mine = evaluation.values.get(case, {}).get(key, metrics)
            if not math.isclose(mine["Dice"], metrics["Dice"], abs_tol=1e-6) and not (
                math.isnan(mine["Dice"]) and math.isnan(metrics["Dice"])
            ):
                message = (
                    f"{folder / METRICS_JSON} is not of the segmentations that are there now: "
                    f"{case} has a Dice of {mine['Dice']:.4f} in it and of {metrics['Dice']:.4f} "
                    f"in {SUMMARY_JSON}. Run nnUNetv2_mapo evaluate again."
                )
                raise ComparisonError(message)


def _check_provenance(parts: Mapping[str, Evaluation]) -> None:
    """Refuse evaluations that were not made in the same way.

    Raises:
        ComparisonError: It names what differs.
    """
    (first, expected), *others = ((name, part.provenance) for name, part in parts.items())
    for name, provenance in others:
        if differing := [
            f"{key}: {expected.get(key)} and {provenance.get(key)}"
            for key in sorted({*expected, *provenance} - {_NOT_COMPARED})
            if expected.get(key) != provenance.get(key)
        ]:
            message = (
                f"{first or 'A folder'} and {name} were not evaluated in the same way: "
                f"{'; '.join(differing)}. Run nnUNetv2_mapo evaluate on both in the same way."
            )
            raise ComparisonError(message)


def check_same(methods: Sequence[Method]) -> None:
    """Refuse methods that were evaluated in different ways, or are of different classes.

    Raises:
        ComparisonError: It names what differs.
    """
    _check_provenance({method.name: method.evaluation for method in methods})
    classes = {method.name: sorted(method.evaluation.classes) for method in methods}
    if len(set(map(tuple, classes.values()))) > 1:
        lines = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in classes.items())
        message = f"The methods do not have the same classes: {lines}. They are of other data sets."
        raise ComparisonError(message)


def _read_histories(results: Results) -> dict[str, History | None]:
    histories: dict[str, History | None] = {}
    for fold, path in results.items():
        if fold:
            try:
                histories[fold] = read_history(path.parent)
            except HistoryError:
                histories[fold] = None  # its checkpoints were deleted: the results remain
    return histories


def list_directions(evaluation: Evaluation, wanted: Sequence[str] | None = None) -> list[Direction]:
    """Metrics of an evaluation in which methods can be better or worse.

    Args:
        evaluation: Of any of the methods.
        wanted: Names of `METRICS`; None: all that are there.

    Raises:
        ComparisonError: A wanted one is not there.
    """
    first = next(iter(next(iter(evaluation.values.values())).values()))
    there = [name for name in METRICS if name in first]
    if missing := [name for name in wanted or () if name not in there]:
        message = (
            f"There is no metric {', '.join(missing)} in what was evaluated: {', '.join(there)}. "
            "nnUNetv2_mapo evaluate makes the others."
        )
        raise ComparisonError(message)
    return [_direct(name, evaluation.provenance) for name in there if name in (wanted or there)]


def _direct(name: str, provenance: dict[str, str]) -> Direction:
    higher_is_better = METRICS[name].higher_is_better
    title = title_of(name, provenance)
    if higher_is_better is None:  # its sign tells the direction: the size is what can be better
        return Direction(name, f"absolute {title}", higher_is_better=False)
    return Direction(name, title, higher_is_better)


def average_classes(evaluation: Evaluation, metric: str) -> dict[str, float]:
    """Value of each case: mean over the classes that have one, sizes of signed metrics.

    Args:
        evaluation: Metrics of every case and class.
        metric: Name of `METRICS`.

    Returns:
        NaN for a case in which no class has a value.
    """
    is_signed = METRICS[metric].higher_is_better is None
    cases = {}
    for case, classes in evaluation.values.items():
        values = np.array([metrics[metric] for metrics in classes.values()])
        values = values[~np.isnan(values)]
        cases[case] = (
            float(np.mean(np.abs(values) if is_signed else values)) if len(values) else math.nan
        )
    return cases


def compare_methods(
    methods: Sequence[Method], wanted: Sequence[str] | None = None
) -> list[MetricComparison]:
    """Compare methods with the first one.

    Args:
        methods: Two or more.
        wanted: Names of `METRICS`; None: all that are there.

    Raises:
        ComparisonError: The methods do not have the same cases, or a metric is not there.
    """
    directions = list_directions(methods[0].evaluation, wanted)
    values = {
        method.name: {
            each.metric: average_classes(method.evaluation, each.metric) for each in directions
        }
        for method in methods
    }
    try:
        return compare(values, directions)
    except ValueError as error:
        raise ComparisonError(str(error)) from error


def note_sources(
    methods: Sequence[Method], folders: Sequence[Path], folds: Sequence[str] | None
) -> list[str]:
    """Where the numbers come from, and how to get those that are missing."""
    results = find_results(folders, folds)
    notes = ["Each case counts once in a metric: with the mean over its classes."]
    if compared := next((found for found in results.values() if any(found)), None):
        notes.insert(0, f"Final validation of fold {', '.join(compared)}.")
    provenance = methods[0].evaluation.provenance
    if provenance:
        return [*notes, f"{provenance['implementation']}; NSD within {provenance['tolerance']}."]
    commands = "; ".join(
        f"nnUNetv2_mapo evaluate {folder}" + ("" if any(found) else " -gt GROUND_TRUTH")
        for folder, found in results.items()
        if find_without_metrics([found])
    )
    return [*notes, f"Dice and IoU only, from nnU-Net's summary.json. For all metrics: {commands}"]
