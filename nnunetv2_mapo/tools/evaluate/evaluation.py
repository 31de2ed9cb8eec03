"""Metrics of every case and class of a folder of segmentations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunetv2_mapo.support.table import list_some
from nnunetv2_mapo.tools.evaluate.case_metrics import (
    CaseFiles,
    EvaluationError,
    Task,
    describe,
    evaluate_case,
    make_task,
)
from nnunetv2_mapo.tools.metrics import METRICS

Values = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of every case.

    Attributes:
        values: Case identifier -> class as nnU-Net's `summary.json` writes it (`"1"`, `"(1, 2)"`)
            -> name of `METRICS` -> value.
        provenance: What computed them: implementation and versions, unit, tolerance, definitions,
            contract for empty masks. Only evaluations with the same one can be compared.
        files: Segmentations of each case, where known.
        class_names: Name of each class in `dataset.json`, where known.
    """

    values: Values
    provenance: dict[str, str]
    files: dict[str, CaseFiles] = field(default_factory=dict)
    class_names: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Keys of the classes."""
        return list(next(iter(self.values.values())))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics: all of `METRICS`, or the two that nnU-Net's own summary has."""
        return list(next(iter(next(iter(self.values.values())).values())))

    def mean(self) -> dict[str, dict[str, float]]:
        """Mean of each class and metric over the cases, NaN left out, as nnU-Net's."""
        return {
            key: {
                name: _mean_of_numbers([case[key][name] for case in self.values.values()])
                for name in self.metrics
            }
            for key in self.classes
        }

    def foreground_mean(self) -> dict[str, float]:
        """Mean of each metric over the means of the classes, as nnU-Net's: NaN if one is NaN."""
        means = self.mean().values()
        return {name: float(np.mean([mean[name] for mean in means])) for name in self.metrics}

    def count_one_empty(self) -> int:
        """Pairs of a case and a class of which exactly one mask is empty."""
        return sum(
            metrics["relative_volume_error"] == -1
            or bool(np.isnan(metrics["relative_volume_error"]) and not np.isnan(metrics["Dice"]))
            for case in self.values.values()
            for metrics in case.values()
        )


def _mean_of_numbers(values: Sequence[float]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def title_of(metric: str, provenance: Mapping[str, str]) -> str:
    """Name of a metric with its unit where it has one, for the head of a column."""
    if not METRICS[metric].unit:
        return metric
    return f"{metric} [{provenance[METRICS[metric].unit]}]"


def tabulate_means(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the means of each class and of the foreground."""
    means = evaluation.mean()
    titles = {key: f"{key} {evaluation.class_names.get(key, '')}".strip() for key in means}
    header = [f"mean of {len(evaluation.values)} cases"]
    header += [title_of(metric, evaluation.provenance) for metric in evaluation.metrics]
    rows = [
        [title, *(f"{mean[metric]:.4f}" for metric in evaluation.metrics)]
        for title, mean in (
            *((titles[key], means[key]) for key in means),
            ("foreground mean", evaluation.foreground_mean()),
        )
    ]
    return header, rows


def evaluate_folder(
    predictions: Path,
    references: Path,
    dataset_json: dict[str, Any],
    *,
    tolerance_mm: float,
    num_processes: int,
    allow_missing: bool = False,
) -> Evaluation:
    """Evaluate every segmentation of a folder.

    Args:
        predictions: Folder of segmentations.
        references: Folder of the ground truth, files of the same names.
        dataset_json: nnU-Net's `dataset.json`.
        tolerance_mm: Distance up to which NSD takes an edge voxel for right, in mm; in pixels for
            images without spacing (PNG, BMP, 2D TIFF).
        num_processes: Worker processes; with 1 there is none but this.
        allow_missing: Whether cases of the ground truth may have no prediction.

    Raises:
        EvaluationError: Something is missing, cannot be read or does not fit.
    """
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        message = f"The tolerance is {tolerance_mm}; it must be a number of mm, 0 or more."
        raise EvaluationError(message)
    if num_processes < 1:
        message = f"{num_processes} processes cannot work; give 1 or more."
        raise EvaluationError(message)
    ending = dataset_json.get("file_ending", "")
    files = match_files(predictions, references, ending, allow_missing=allow_missing)
    task = make_task(dataset_json, Path(next(iter(files.values())).reference), tolerance_mm)
    evaluated = _evaluate_cases(list(files.values()), task, num_processes)
    progress = tqdm(evaluated, total=len(files), desc="Evaluating", unit="case")
    values = dict(zip(files, progress, strict=True))
    names = {
        str(tuple(label) if isinstance(label, list) else label): name
        for name, label in dataset_json["labels"].items()
    }
    keys = next(iter(values.values()))
    return Evaluation(
        values, describe(task), files, {key: names[key] for key in keys if key in names}
    )


def match_files(
    predictions: Path, references: Path, ending: str, *, allow_missing: bool
) -> dict[str, CaseFiles]:
    """Files of each case, sorted by identifier.

    Raises:
        EvaluationError: There is no prediction, or a prediction or a ground truth has no other.
    """
    if not ending:
        message = "dataset.json has no file_ending: see nnU-Net's dataset format."
        raise EvaluationError(message)
    predicted, known = ({p.name for p in f.glob(f"*{ending}")} for f in (predictions, references))
    if not predicted:
        message = f"{predictions} has no file that ends in {ending}, as dataset.json demands."
        raise EvaluationError(message)
    if unknown := sorted(predicted - known):
        message = f"No ground truth in {references} for {list_some(unknown)} of {predictions}."
        raise EvaluationError(message)
    if (missing := sorted(known - predicted)) and not allow_missing:
        message = (
            f"No prediction in {predictions} for {list_some(missing)} of {references}. Predict "
            "them, or evaluate the others alone with --chill."
        )
        raise EvaluationError(message)
    return {
        name.removesuffix(ending): CaseFiles(str(references / name), str(predictions / name))
        for name in sorted(predicted)
    }


def _evaluate_cases(
    files: Sequence[CaseFiles], task: Task, num_processes: int
) -> Iterator[dict[str, dict[str, float]]]:
    evaluate = partial(evaluate_case, task=task)
    if num_processes == 1:
        yield from map(evaluate, files)
        return
    pool = ProcessPoolExecutor(
        min(num_processes, len(files)),
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,  # one thread each, or they starve each other
        initargs=(1,),
    )
    try:
        with pool:
            yield from pool.map(evaluate, files)
    except BrokenProcessPool as error:
        message = (
            "A worker process died, most likely for lack of memory: use fewer with -np. Each "
            "holds a few copies of one case."
        )
        raise EvaluationError(message) from error


def merge_evaluations(parts: Mapping[str, Evaluation]) -> Evaluation:
    """One evaluation of all the cases of several, such as the folds of a cross-validation.

    Args:
        parts: Evaluations by name, made in the same way.

    Raises:
        EvaluationError: A case is in two of them, or they are not of the same classes.
    """
    owners: dict[str, str] = {}
    for name, part in parts.items():
        for case in part.values:
            if case in owners:
                message = (
                    f"Case {case} is in both {owners[case]} and {name}. Folds of a "
                    "cross-validation share no case: evaluate folds of one split."
                )
                raise EvaluationError(message)
            owners[case] = name
    first = next(iter(parts.values()))
    values = {case: parts[owners[case]].values[case] for case in sorted(owners)}
    check_values(values)
    return Evaluation(
        values=values,
        provenance=first.provenance,
        files={case: file for part in parts.values() for case, file in part.files.items()},
        class_names=first.class_names,
    )


def check_values(values: Values) -> None:
    """Refuse values that are not of the same classes and metrics in every case.

    Raises:
        EvaluationError: They are not, or there are none.
    """
    if not values or not all(values.values()):
        message = "It has no case, or a case without a class."
        raise EvaluationError(message)
    contents = {
        case: {key: set(metrics) for key, metrics in classes.items()}
        for case, classes in values.items()
    }
    first, *others = contents
    for case in others:
        if contents[case] != contents[first]:
            message = f"Cases {first} and {case} do not have the same classes and metrics."
            raise EvaluationError(message)
