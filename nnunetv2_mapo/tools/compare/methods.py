"""The methods of a comparison: what their folders hold, and what their trainings cost."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_mapo.tools.evaluate.case_metrics import EvaluationError
from nnunetv2_mapo.tools.evaluate.evaluation import Evaluation, merge_evaluations
from nnunetv2_mapo.tools.evaluate.evaluation_files import (
    METRICS_JSON,
    SUMMARY_JSON,
    read_evaluation,
    read_summary,
)
from nnunetv2_mapo.tools.history import History, HistoryError, read_history

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
    name = METRICS_JSON
    if find_without_metrics(results.values()):
        name = SUMMARY_JSON
        paths = [path for found in results.values() for path in found.values()]
        if lacks := [str(path) for path in paths if not (path / SUMMARY_JSON).is_file()]:
            message = (
                f"{', '.join(lacks)} has only {METRICS_JSON}, which others do not have. Make it: "
                f"{_list_commands(results)}"
            )
            raise ComparisonError(message)
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
    if len({folder.resolve() for folder in folders}) < len(folders):
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
    # A fold itself holds them where nnUNetv2_mapo evaluate was given another folder.
    places: dict[str, tuple[Path, ...]] = {
        path.name.removeprefix("fold_"): (path / "validation", path)
        for path in sorted(folder.glob("fold_*"))
    } or {"": (folder,)}
    return {
        fold: next(path for path in paths if any((path / name).is_file() for name in names))
        for fold, paths in places.items()
        if any((path / name).is_file() for path in paths for name in names)
    }


def find_without_metrics(results: Iterable[Results]) -> list[Path]:
    """Folders of results without a `metrics.json`."""
    return [
        path for folds in results for path in folds.values() if not (path / METRICS_JSON).is_file()
    ]


def name_methods(folders: Sequence[Path]) -> list[str]:
    """Shortest names that tell the folders apart: trainer, folder, whole path."""
    # resolve() would follow links, and the name of a link is the one that was given
    paths = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100
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


def _check_fresh(folder: Path, evaluation: Evaluation) -> None:
    """Refuse metrics of segmentations that nnU-Net has made anew since.

    Raises:
        ComparisonError: `metrics.json` lacks a case of `summary.json`, or has another Dice.
    """
    if not (folder / SUMMARY_JSON).is_file():
        return
    for case, classes in read_summary(folder / SUMMARY_JSON).values.items():
        if case not in evaluation.values:
            message = (
                f"{folder / METRICS_JSON} lacks {case}, which {SUMMARY_JSON} has. Run "
                "nnUNetv2_mapo evaluate again."
            )
            raise ComparisonError(message)
        for key, metrics in classes.items():
            mine = evaluation.values[case].get(key, metrics)
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
    commands = _list_commands(results)
    return [*notes, f"Dice and IoU only, from nnU-Net's summary.json. For all metrics: {commands}"]


def _list_commands(results: Mapping[Path, Results]) -> str:
    """Commands that evaluate the folders without a `metrics.json`."""
    return "; ".join(
        f"nnUNetv2_mapo evaluate {folder}" + ("" if any(found) else " -gt GROUND_TRUTH")
        for folder, found in results.items()
        if find_without_metrics([found])
    )
