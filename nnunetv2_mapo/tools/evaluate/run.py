"""The steps of an evaluation: find segmentations and ground truth, measure, print, write."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import WriteError
from nnunetv2_mapo.support.table import list_some, stack_table, wrap
from nnunetv2_mapo.tools.evaluate import (
    SUMMARY_JSON,
    Evaluation,
    merge_evaluations,
    read_evaluation,
    tabulate_means,
    tabulate_values,
    write_evaluation,
)
from nnunetv2_mapo.tools.evaluate.case_metrics import (
    CaseFiles,
    EvaluationError,
    Task,
    describe,
    evaluate_case,
    make_task,
)
from nnunetv2_mapo.tools.metrics import GROUPS
from nnunetv2_mapo.tools.train_command import dataset_of, name_of, say_finish

FOLD_ALL = "fold_all"  # validates on its training cases


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate from the parsed command line, print the means, write the metrics.

    Raises:
        CommandError: Something is missing, cannot be read or written, or does not fit.
    """
    predictions, output = arguments.predictions, arguments.output or arguments.predictions
    folds = sorted(path.name for path in predictions.glob("fold_*") if path.is_dir())
    references = arguments.labels or _find_references(predictions, is_model=bool(folds))
    dataset_json = _read_dataset_json(arguments.djfile or predictions / "dataset.json")

    def evaluate(part: Path) -> Evaluation:
        return evaluate_folder(
            predictions / part,
            references,
            dataset_json,
            tolerance_mm=arguments.tolerance,
            num_processes=arguments.np or default_num_processes,
            allow_missing=arguments.chill,
            groups=[group for group in GROUPS if getattr(arguments, group)],
        )

    try:
        if not folds:
            _report(evaluate(Path()), "", output)
            return
        evaluated = {}
        for fold in _keep_finished(predictions, folds, chill=arguments.chill):
            evaluated[fold] = evaluate(Path(fold, "validation"))
            _report(evaluated[fold], fold, output / fold / "validation")
        evaluated.pop(FOLD_ALL, None)
        if len(evaluated) > 1:
            _report(merge_evaluations(evaluated), ", ".join(evaluated), output)
        elif evaluated:  # its table is printed already
            _write(merge_evaluations(evaluated), output)
    except (EvaluationError, WriteError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        message = f"Cannot write the metrics: {error}. Name another folder with -o."
        raise CommandError(message) from error


def _report(evaluation: Evaluation, name: str, folder: Path) -> None:
    """Print the means of the folds `name`, if it is of folds, and write the metrics."""
    values, provenance = evaluation.values, evaluation.provenance
    print(f"\n{name}\n{stack_table(*tabulate_means(evaluation))}")
    error = values["relative_volume_error"]
    if num_empty := int(((error == -1) | (error.isna() & values["Dice"].notna())).sum()):
        told = (
            f"One mask is empty and the other is not {num_empty} times: Dice and NSD are 0 there, "
            "ASD and HD95 the image's diagonal."
        )
        print(wrap(told))
    told = (
        f"Surfaces: {provenance['implementation']}, distances in {provenance['unit']}; "
        f"NSD within {provenance['tolerance']}"
    )
    print(wrap(told))
    _write(evaluation, folder)


def _write(evaluation: Evaluation, folder: Path) -> None:
    write_evaluation(evaluation, folder)
    print(f"Written: metrics.json and metrics.csv in {folder}", flush=True)


def _read_dataset_json(path: Path) -> dict[str, Any]:
    """Content of `dataset.json`."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if {"labels", "file_ending"} <= {*content}:
            return content
        problem = "it has no labels and file_ending"
    except (OSError, ValueError) as error:
        problem = str(error)
    message = f"{path} is no dataset.json of nnU-Net ({problem}). Give the data set's with -djfile."
    raise CommandError(message)


def _find_references(predictions: Path, *, is_model: bool) -> Path:
    """Folder of the ground truth that nnU-Net keeps of a model's data set."""
    preprocessed = nnUNet_preprocessed.get() or "$nnUNet_preprocessed"
    references = Path(preprocessed, dataset_of(predictions), "gt_segmentations")
    if is_model and references.is_dir():
        return references
    problem = f"There is no ground truth in {references}. " if is_model else ""
    example = "such as nnUNet_raw/DATASET/labelsTs"
    message = f"{problem}Give the folder of the ground truth with --labels, {example}."
    raise CommandError(message)


def _keep_finished(predictions: Path, folds: Sequence[str], *, chill: bool) -> list[str]:
    """Folds whose validation is finished: nnU-Net writes its `summary.json` with the last case."""
    finished = [f for f in folds if (predictions / f / "validation" / SUMMARY_JSON).is_file()]
    if len(finished) == len(folds) or (chill and finished):
        return finished
    unfinished = sorted({*folds} - {*finished})
    message = (
        f"{', '.join(unfinished)} of {predictions}: no finished validation. Leave it out with "
        "--chill, or finish it"
    )
    if name := name_of(predictions):
        numbers = (fold.removeprefix("fold_") for fold in unfinished)
        message += ":" + "".join(f"\n  {say_finish(predictions, name, fold)}" for fold in numbers)
    raise CommandError(message)


def evaluate_folder(
    predictions: Path,
    references: Path,
    dataset_json: dict[str, Any],
    *,
    tolerance_mm: float,
    num_processes: int,
    allow_missing: bool = False,
    groups: Sequence[str] = (),
) -> Evaluation:
    """Evaluate every segmentation of a folder.

    Args:
        predictions: Folder of segmentations.
        references: Folder of the ground truth, files of the same names.
        dataset_json: nnU-Net's `dataset.json`.
        tolerance_mm: Distance up to which NSD takes an edge voxel for right, in mm; in pixels for
            images without spacing (PNG, BMP, 2D TIFF).
        num_processes: Worker processes; with 1 there is none but this.
        allow_missing: Whether cases may have no prediction: those of nnU-Net's `summary.json` in
            the folder, or where there is none, all of the ground truth.
        groups: Of metrics besides the usual ones, of `metrics.GROUPS`.

    Raises:
        EvaluationError: Something is missing, cannot be read or does not fit.
    """
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        message = f"The tolerance is {tolerance_mm}; it must be a number of mm, 0 or more."
        raise EvaluationError(message)
    ending = dataset_json["file_ending"]
    files = _match_files(predictions, references, ending, allow_missing=allow_missing)
    task = make_task(dataset_json, Path(next(iter(files.values())).reference), tolerance_mm)
    task = replace(task, groups=tuple(groups))
    evaluated = _evaluate_cases(list(files.values()), task, num_processes)
    # no estimate: the first cases wait for the workers' imports, the others do not
    bar = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}]"
    progress = tqdm(evaluated, total=len(files), desc="Evaluating", bar_format=bar)
    values = tabulate_values(dict(zip(files, progress, strict=True)))
    names = {
        str(tuple(label) if isinstance(label, list) else label): name
        for name, label in dataset_json["labels"].items()
    }
    class_names = {key: names[key] for key in values.index.unique("class") if key in names}
    return Evaluation(values, describe(task), class_names)


def _match_files(
    predictions: Path, references: Path, ending: str, *, allow_missing: bool
) -> dict[str, CaseFiles]:
    """Files of each case, sorted by identifier."""
    predicted, known = (
        {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}
        for folder in (predictions, references)
    )
    if not predicted:
        message = f"{predictions} has no file that ends in {ending}, as dataset.json demands."
        raise EvaluationError(message)
    if unknown := sorted(predicted - known):
        message = f"No ground truth in {references} for {list_some(unknown)} of {predictions}."
        raise EvaluationError(message)
    summary = predictions / SUMMARY_JSON
    needed = known if allow_missing or not summary.is_file() else {*read_evaluation(summary).cases}
    if (missing := sorted(needed - predicted)) and not allow_missing:
        message = (
            f"No prediction in {predictions} for {list_some(missing)}. Predict all cases, or "
            "evaluate the others alone with --chill."
        )
        raise EvaluationError(message)
    return {
        case: CaseFiles(f"{references / case}{ending}", f"{predictions / case}{ending}")
        for case in sorted(predicted)
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
