"""Results part of a report: metrics of the model, compared with other trainings and its warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from markupsafe import Markup
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_mapo.method.reference import REFERENCE, read_reference
from nnunetv2_mapo.tools.compare import (
    ComparisonError,
    Method,
    check_same,
    note_sources,
    read_methods,
)
from nnunetv2_mapo.tools.compare.tables import compare_methods, render_comparison
from nnunetv2_mapo.tools.evaluate import (
    Evaluation,
    merge_evaluations,
    tabulate_means,
    write_evaluation,
)
from nnunetv2_mapo.tools.evaluate.run import evaluate_folder
from nnunetv2_mapo.tools.history import HistoryError, find_checkpoint, read_history
from nnunetv2_mapo.tools.models import open_cases, open_model
from nnunetv2_mapo.tools.page import render_part
from nnunetv2_mapo.tools.report.warmup_validation import FOLDER, predict_validation

WARMUP = "after the warm-up"


def render_results(
    folder: Path, others: Sequence[Path], folds: Sequence[str] | None, device: torch.device | None
) -> Markup:
    """HTML of a model's results.

    Args:
        folder: Model folder.
        others: Model folders to compare with, the baseline first.
        folds: Folds that count; None: all whose validation is finished, but not `all`.
        device: Where the weights after the warm-up are validated; None: they are not compared.

    Raises:
        ComparisonError: Results are missing, or are not of the same cases, classes or metrics.
        HistoryError: There are no weights after the warm-up.
    """
    methods = read_methods([*others, folder], folds)
    evaluation = methods[-1].evaluation
    notes = note_sources(methods)
    header, rows = tabulate_means(evaluation)
    if device is not None:
        tolerance = find_tolerance(folder, evaluation)
        parts = {
            fold: validate_warmup(folder, fold, tolerance, device) for fold in methods[-1].histories
        }
        methods.insert(-1, Method(WARMUP, merge_evaluations(parts), {}))
        check_same(methods)
    comparison = None
    if len(methods) > 1:
        comparison = render_comparison(compare_methods(methods))
    return render_part("results.html", header=header, rows=rows, notes=notes, comparison=comparison)


def find_tolerance(folder: Path, evaluation: Evaluation) -> float:
    """Tolerance with which a model was evaluated.

    Raises:
        ComparisonError: It was not, but by nnU-Net itself.
    """
    if not evaluation.provenance:
        message = f"--warmup needs all metrics of the model: nnUNetv2_mapo evaluate {folder}"
        raise ComparisonError(message)
    return float(evaluation.provenance["tolerance"].split()[0])


def validate_warmup(folder: Path, fold: str, tolerance: float, device: torch.device) -> Evaluation:
    """Segment a fold's validation cases with the weights after the warm-up, and evaluate them.

    Segmentations and metrics are kept in the fold's folder `validation_warmup`.

    Raises:
        HistoryError: The weights are missing, damaged or those of a later round.
    """
    path = folder / f"fold_{fold}"
    history = read_history(path)
    if (history.config or {}).get("reference_update") == "round":
        message = (
            f"{path / REFERENCE} holds the weights at the start of the last round, because the "
            "reference was renewed with each (reference_update): those after the warm-up are gone."
        )
        raise HistoryError(message)
    model = open_model(folder, fold, find_checkpoint(path).name, device)
    weights = read_reference(path / REFERENCE, history.reference_hash, device)
    if weights is None:
        message = (
            f"{path / REFERENCE} is missing or damaged: it holds the weights after the warm-up of "
            "a training with preferences."
        )
        raise HistoryError(message)
    output, cases = path / FOLDER, open_cases(model).validation
    predict_validation(model, weights, cases, output, device)
    truth = Path(nnUNet_preprocessed.require()) / folder.parent.name / "gt_segmentations"
    evaluation = evaluate_folder(
        output, truth, model.dataset_json, tolerance_mm=tolerance, num_processes=1,
        allow_missing=True,
    )  # fmt: skip
    write_evaluation(evaluation, output)
    return evaluation
