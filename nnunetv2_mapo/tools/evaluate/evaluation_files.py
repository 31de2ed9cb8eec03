"""Evaluations on disk: our `metrics.json` and `metrics.csv`, nnU-Net's `summary.json`.

`metrics.json` has the structure and the keys of `summary.json`, `metrics.csv` one row for each case
and class.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from nnunetv2_mapo.support.files import write_atomically
from nnunetv2_mapo.tools.evaluate.case_metrics import CaseFiles, EvaluationError
from nnunetv2_mapo.tools.evaluate.evaluation import Evaluation, check_values, title_of
from nnunetv2_mapo.tools.metrics import METRICS

METRICS_JSON, METRICS_CSV, SUMMARY_JSON = "metrics.json", "metrics.csv", "summary.json"
# What reading a JSON file raises that has other contents.
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, EvaluationError)


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `metrics.json` and `metrics.csv`, each complete or not at all.

    Raises:
        WriteError: The disk is full.
        OSError: The folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "foreground_mean": evaluation.foreground_mean(),
        "mean": evaluation.mean(),
        "metric_per_case": [
            {"case": case, "metrics": metrics, **_file_entries(evaluation.files.get(case))}
            for case, metrics in evaluation.values.items()
        ],
        "class_names": evaluation.class_names,
        "provenance": evaluation.provenance,
    }
    write_atomically(folder / METRICS_CSV, _format_csv(evaluation).encode())
    write_atomically(folder / METRICS_JSON, json.dumps(content, indent=1).encode())


def _file_entries(files: CaseFiles | None) -> dict[str, str]:
    if files is None:
        return {}
    return {"reference_file": files.reference, "prediction_file": files.prediction}


def _format_csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = [title_of(name, evaluation.provenance) for name in METRICS]
    writer.writerow(["case", "class", "class name", *titles, "implementation", "tolerance"])
    made = evaluation.provenance["implementation"], evaluation.provenance["tolerance"]
    for case, classes in evaluation.values.items():
        for key, metrics in classes.items():
            name = evaluation.class_names.get(key, "")
            writer.writerow([case, key, name, *(metrics[metric] for metric in METRICS), *made])
    return text.getvalue()


def read_evaluation(path: Path) -> Evaluation:
    """Read a `metrics.json`.

    Args:
        path: The file or its folder.

    Raises:
        EvaluationError: It is missing, damaged or something else.
    """
    if path.is_dir():
        path /= METRICS_JSON
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        cases = {entry["case"]: entry for entry in content["metric_per_case"]}
        values = {case: entry["metrics"] for case, entry in cases.items()}
        check_values(values)
        return Evaluation(
            values=values,
            provenance=content["provenance"],
            files={
                case: CaseFiles(entry["reference_file"], entry["prediction_file"])
                for case, entry in cases.items()
                if "reference_file" in entry
            },
            class_names=content["class_names"],
        )
    except (OSError, *_DAMAGED) as error:
        message = (
            f"{path} is not a file of nnUNetv2_mapo evaluate ({type(error).__name__}: {error}). "
            "Make it with nnUNetv2_mapo evaluate."
        )
        raise EvaluationError(message) from error


def read_summary(path: Path) -> Evaluation:
    """Read nnU-Net's `summary.json`: Dice and IoU.

    Raises:
        EvaluationError: It is missing or damaged.
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
        check_values(values)
    except (OSError, *_DAMAGED) as error:
        message = (
            f"{path} is not nnU-Net's summary of an evaluation ({type(error).__name__}: {error}). "
            "Make it anew with nnUNetv2_train … --val or nnUNetv2_evaluate_folder."
        )
        raise EvaluationError(message) from error
    return Evaluation(values, provenance={})


def _case_of(file: str) -> str:
    name = re.split(r"[\\/]", file)[-1]  # of a path of any operating system
    return name.removesuffix(".gz").rpartition(".")[0]
