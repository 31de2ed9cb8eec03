"""How good segmentations are: the metrics of each case and class, as a table and as files.

`metrics.json` has the structure and the keys of nnU-Net's `summary.json`, `metrics.csv` one row for
each case and class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nnunetv2_mapo.support.files import write_atomically
from nnunetv2_mapo.tools.evaluate.case_metrics import EvaluationError
from nnunetv2_mapo.tools.metrics import METRICS

METRICS_JSON, SUMMARY_JSON = "metrics.json", "summary.json"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of every case.

    Attributes:
        values: A row for each case and class (index levels `case` and `class`, of several folds
            also `fold`), a column for each metric: all of `METRICS`, or the two that nnU-Net's
            summary has. Classes are written as there: `"1"`, `"(1, 2)"`.
        provenance: What computed them: implementation and versions, unit, tolerance, definitions,
            contract for empty masks. Only evaluations with the same one can be compared.
        class_names: Name of each class in `dataset.json`, where known.
    """

    values: pd.DataFrame
    provenance: dict[str, str]
    class_names: dict[str, str] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """Identifiers of the cases."""
        return list(self.values.index.unique("case"))

    def mean(self) -> pd.DataFrame:
        """Mean of each class (row) and metric over the cases, NaN left out, as nnU-Net's."""
        classes = self.values.groupby(level="class", sort=False)
        return classes.agg(lambda column: column.mean())  # groupby's own mean sums in another way

    def foreground_mean(self) -> pd.Series:
        """Mean of each metric over the means of the classes, as nnU-Net's: NaN if one is NaN."""
        return self.mean().mean(skipna=False)


def tabulate_values(cases: Mapping[str, Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    """`Evaluation.values` of nested mappings: case -> class -> metric -> value.

    Raises:
        EvaluationError: There is nothing, or not the same classes in every case.
    """
    classes = {tuple(each) for each in cases.values()}
    if len(classes) != 1 or () in classes:
        message = "It has no case, or its cases do not have the same classes."
        raise EvaluationError(message)
    keys = [(case, key) for case, each in cases.items() for key in each]
    index = pd.MultiIndex.from_tuples(keys, names=["case", "class"])
    rows = [metrics for each in cases.values() for metrics in each.values()]
    values = pd.DataFrame(rows, index=index, dtype=float)
    return values[[name for name in METRICS if name in values]]


def merge_evaluations(parts: Mapping[str, Evaluation]) -> Evaluation:
    """One evaluation of all the cases of several, such as the folds of a cross-validation.

    Args:
        parts: Evaluations of the same classes by the name of their fold, made in the same way.

    Raises:
        EvaluationError: A case is in two of them.
    """
    values = pd.concat({fold: part.values for fold, part in parts.items()}, names=["fold"])
    twice = values.index.droplevel("fold").duplicated()
    if twice.any():
        case = values.index[twice].unique("case")[0]
        folds = " and ".join(values.xs(case, level="case").index.unique("fold"))
        message = (
            f"Case {case} is in both {folds}. Folds of a cross-validation share no case: evaluate "
            "folds of one split."
        )
        raise EvaluationError(message)
    first = next(iter(parts.values()))
    return Evaluation(values, first.provenance, first.class_names)


def title_of(metric: str, provenance: Mapping[str, str]) -> str:
    """Name of a metric with its unit where it has one, for the head of a column."""
    unit = METRICS[metric].unit
    return f"{metric} [{provenance[unit]}]" if unit else metric


def tabulate_means(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the means of each class and of the foreground."""
    means, names = evaluation.mean(), evaluation.class_names
    titles = [f"{key} {names.get(key, '')}".strip() for key in means.index]
    header = [f"mean of {len(evaluation.cases)} cases"]
    header += [title_of(metric, evaluation.provenance) for metric in means]
    rows = zip(
        [*titles, "foreground mean"],
        [*means.to_numpy(), evaluation.foreground_mean()],
        strict=True,
    )
    return header, [[title, *(f"{value:.4f}" for value in values)] for title, values in rows]


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `metrics.json` and `metrics.csv`, each complete or not at all.

    Raises:
        WriteError: The disk is full.
        OSError: The folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values, provenance = evaluation.values, evaluation.provenance
    table = values.rename(columns={metric: title_of(metric, provenance) for metric in values})
    table = table.reset_index()
    names = [evaluation.class_names.get(key, "") for key in table["class"]]
    table.insert(table.columns.get_loc("class") + 1, "class name", names)
    table = table.assign(**{key: provenance.get(key) for key in ("implementation", "tolerance")})
    write_atomically(folder / "metrics.csv", table.to_csv(index=False, na_rep="nan").encode())
    content = {
        "foreground_mean": evaluation.foreground_mean().to_dict(),
        "mean": evaluation.mean().to_dict("index"),
        "metric_per_case": [
            {"case": case, "metrics": rows.droplevel([*rows.index.names[:-1]]).to_dict("index")}
            for case, rows in values.groupby(level="case", sort=False)
        ],
        "class_names": evaluation.class_names,
        "provenance": provenance,
    }
    write_atomically(folder / METRICS_JSON, json.dumps(content, indent=1).encode())


def read_evaluation(path: Path) -> Evaluation:
    """Read our `metrics.json`, or Dice and IoU of nnU-Net's `summary.json`.

    Args:
        path: The file, or the folder of a `metrics.json`.

    Raises:
        EvaluationError: It is missing, damaged or something else.
    """
    path = path / METRICS_JSON if path.is_dir() else path
    try:
        content = json.loads(path.read_bytes())
        values = tabulate_values(
            {
                entry["case"] if "case" in entry else _case_of(entry["prediction_file"]):
                entry["metrics"]
                for entry in content["metric_per_case"]
            }
        )  # fmt: skip
        return Evaluation(values, content.get("provenance", {}), content.get("class_names", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EvaluationError) as error:
        maker = "nnUNetv2_mapo evaluate"
        if path.name == SUMMARY_JSON:
            maker = "nnUNetv2_train … --val or nnUNetv2_evaluate_folder"
        message = (
            f"{path} cannot be read as an evaluation ({type(error).__name__}: {error}). Make it "
            f"anew with {maker}."
        )
        raise EvaluationError(message) from error


def _case_of(file: str) -> str:
    name = re.split(r"[\\/]", file)[-1]  # of a path of any operating system
    return name.removesuffix(".gz").rpartition(".")[0]
