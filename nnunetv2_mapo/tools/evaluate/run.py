"""The steps of an evaluation: find segmentations and ground truth, measure, print, write."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.table import format_table

if TYPE_CHECKING:
    from nnunetv2_mapo.tools.evaluate.evaluation import Evaluation

FOLD_ALL = "fold_all"


@dataclass(frozen=True)
class Folder:
    """Segmentations that are evaluated together.

    Attributes:
        name: For the table.
        predictions: Where they are.
        output: Where the metrics go.
        is_fold: Whether it is a fold's finished validation, which has a part of the cases.
    """

    name: str
    predictions: Path
    output: Path
    is_fold: bool


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate from the parsed command line, print the means, write the metrics.

    Raises:
        CommandError: Something is missing, cannot be read or written, or does not fit.
    """
    predictions = arguments.predictions.expanduser()
    output = (arguments.o or predictions).expanduser()
    folders = find_folders(predictions, output, chill=arguments.chill)
    references = find_references(predictions, arguments.gt, is_model=folders[0].is_fold)
    dataset_json = read_dataset_json(arguments.djfile or predictions / "dataset.json")
    print("Importing nnU-Net and MONAI ...", flush=True)
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_mapo.support.files import WriteError
    from nnunetv2_mapo.tools.evaluate.case_metrics import EvaluationError
    from nnunetv2_mapo.tools.evaluate.evaluation import evaluate_folder

    def evaluate(folder: Folder) -> Evaluation:
        return evaluate_folder(
            folder.predictions,
            references,
            dataset_json,
            tolerance_mm=arguments.tolerance,
            num_processes=default_num_processes if arguments.np is None else arguments.np,
            allow_missing=arguments.chill or folder.is_fold,
        )

    try:
        if not arguments.chill:
            check_folds(folders, dataset_json["file_ending"])
        evaluate_all(folders, output, evaluate)
    except (EvaluationError, WriteError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        message = f"Cannot write the metrics: {error}. Name another folder with -o."
        raise CommandError(message) from error


def evaluate_all(
    folders: Sequence[Folder], output: Path, evaluate: Callable[[Folder], Evaluation]
) -> None:
    """Evaluate, print and write each folder, then all folds of a cross-validation together.

    Args:
        folders: What to evaluate.
        output: Where the metrics of all folds go.
        evaluate: Evaluates a folder.
    """
    from nnunetv2_mapo.tools.evaluate.evaluation import merge_evaluations
    from nnunetv2_mapo.tools.evaluate.evaluation_files import write_evaluation

    folds = {}
    for folder in folders:
        evaluation = evaluate(folder)
        print(f"\n{format_evaluation(folder.name, evaluation)}", flush=True)
        write_evaluation(evaluation, folder.output)
        print(f"Written: metrics.json and metrics.csv in {folder.output}")
        if folder.is_fold and folder.name != FOLD_ALL:
            folds[folder.name] = evaluation
    if folds:
        overall = merge_evaluations(folds)
        if len(folds) > 1:
            print(f"\n{format_evaluation(', '.join(folds), overall)}")
        write_evaluation(overall, output)
        print(f"Written: metrics.json and metrics.csv of {', '.join(folds)} in {output}")


def find_folders(predictions: Path, output: Path, *, chill: bool) -> list[Folder]:
    """Folders to evaluate: the folds of a model folder, or the folder itself, without a name.

    Raises:
        CommandError: There is nothing to evaluate, or a fold has no finished validation.
    """
    if not predictions.is_dir():
        message = f"{predictions} is not a folder. Give a folder of segmentations or of a model."
        raise CommandError(message)
    folds = sorted(path for path in predictions.glob("fold_*") if path.is_dir())
    if not folds:
        return [Folder("", predictions, output, is_fold=False)]
    # nnU-Net writes summary.json when the last case of a validation is there.
    finished = [fold for fold in folds if (fold / "validation" / "summary.json").is_file()]
    unfinished = [fold.name for fold in folds if fold not in finished]
    if not finished or (unfinished and not chill):
        message = (
            f"{', '.join(unfinished)} of {predictions}: no finished validation. Finish it with "
            "nnUNetv2_train DATASET CONFIGURATION FOLD -tr TRAINER --val"
            + (", or leave it out with --chill." if finished else ".")
        )
        raise CommandError(message)
    for name in unfinished:
        print(f"{name} is left out: it has no finished validation.")
    if len(finished) > 1 and any(fold.name == FOLD_ALL for fold in finished):
        print(f"{FOLD_ALL} validates on its training cases: the folds together are without it.")
    return [
        Folder(
            fold.name,
            fold / "validation",
            fold / "validation"
            if output.resolve() == predictions.resolve()
            else output / fold.name,
            is_fold=True,
        )
        for fold in finished
    ]


def check_folds(folders: Sequence[Folder], ending: str) -> None:
    """Refuse folds that do not have every prediction that nnU-Net validated.

    Args:
        folders: Folds, or a folder of segmentations, which has no list of its cases.
        ending: Of the files.

    Raises:
        CommandError: Predictions are missing.
        ComparisonError: The `summary.json` of a fold is damaged.
    """
    from nnunetv2_mapo.tools.evaluate.evaluation_files import read_summary

    for folder in (folder for folder in folders if folder.is_fold):
        cases = read_summary(folder.predictions / "summary.json").values
        if lacks := [c for c in cases if not (folder.predictions / f"{c}{ending}").is_file()]:
            message = (
                f"{folder.predictions} lacks {', '.join(lacks)}, which its summary.json has. "
                "Predict them with nnUNetv2_train DATASET CONFIGURATION FOLD -tr TRAINER --val, or "
                "evaluate the others alone with --chill."
            )
            raise CommandError(message)


def find_references(predictions: Path, given: Path | None, *, is_model: bool) -> Path:
    """Folder of the ground truth.

    Raises:
        CommandError: It is not given or not there.
    """
    if given is not None:
        references = given.expanduser()
    elif not is_model:
        message = (
            "Give the folder of the ground truth with -gt, such as nnUNet_raw/DATASET/labelsTs."
        )
        raise CommandError(message)
    else:
        preprocessed = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112  # nnU-Net's own name
        if not preprocessed:
            message = "nnUNet_preprocessed is not set: set it, or give the ground truth with -gt."
            raise CommandError(message)
        # resolve() would follow links, and the name of a link is the one that counts
        model = Path(os.path.abspath(predictions))  # noqa: PTH100
        references = Path(preprocessed) / model.parent.name / "gt_segmentations"
    if not references.is_dir():
        message = f"There is no ground truth in {references}. Give its folder with -gt."
        raise CommandError(message)
    return references


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Content of `dataset.json`.

    Raises:
        CommandError: It cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}). Give the data set's dataset.json with -djfile."
        raise CommandError(message) from error
    if not isinstance(content, dict) or not {"labels", "file_ending"} <= set(content):
        message = f"{path} has no labels and file_ending: it is no dataset.json of nnU-Net."
        raise CommandError(message)
    return content


def format_provenance(provenance: dict[str, str]) -> str:
    """What computed the numbers, in one line."""
    return (
        f"Surfaces: {provenance['implementation']}, distances in {provenance['unit']}; "
        f"NSD within {provenance['tolerance']}"
    )


def format_evaluation(name: str, evaluation: Evaluation) -> str:
    """Table of the means of each class and of the foreground, and what computed them."""
    from nnunetv2_mapo.tools.evaluate.evaluation import tabulate_means

    table = format_table(*tabulate_means(evaluation))
    if num_empty := evaluation.count_one_empty():
        table += (
            f"\nOne mask is empty and the other is not {num_empty} times: Dice and NSD are 0 "
            "there, ASD and HD95 the image's diagonal."
        )
    table += f"\n{format_provenance(evaluation.provenance)}"
    return f"{name}\n{table}" if name else table
