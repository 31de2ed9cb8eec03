"""A comparison as text, HTML and JSON: the same tables in all of them."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import WriteError, write_atomically
from nnunetv2_mapo.support.table import format_table
from nnunetv2_mapo.tools.compare import ComparisonError, Method, note_sources, read_methods
from nnunetv2_mapo.tools.compare.statistics import (
    FEW_CASES,
    LEVEL,
    compare,
    score_cases,
    subtract,
    summarize,
)
from nnunetv2_mapo.tools.evaluate import title_of
from nnunetv2_mapo.tools.figures import draw_paired_dots
from nnunetv2_mapo.tools.history import format_duration
from nnunetv2_mapo.tools.metrics import METRICS
from nnunetv2_mapo.tools.page import figure_to_svg, render_part, write_page

_NOTES = [
    "p: Wilcoxon signed-rank test, two-sided; corrected by Holm over all tests that are shown. "
    "95 %: interval of the mean by bootstrap (BCa) over the cases.",
    "The test and the interval are about other cases, not about other trainings: a second seed of "
    "the same method may differ by as much.",
]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found of methods.

    Attributes:
        titles: Of each metric, with its unit where it has one.
        scores: See `score_cases`; the first column is the baseline.
        summaries: See `summarize`.
        differences: See `compare`.
        costs: A row for each method and fold, columns `epochs`, `training_s` and `mining_s`; NaN
            where its training cannot be read.
        notes: Where the numbers come from, and how to read them.
    """

    titles: dict[str, str]
    scores: pd.DataFrame
    summaries: pd.DataFrame
    differences: pd.DataFrame
    costs: pd.DataFrame
    notes: list[str]

    @property
    def title(self) -> str:
        """Names of the methods, the baseline last."""
        baseline, *others = self.scores
        return f"{', '.join(others)} compared with {baseline}"


def run_compare(arguments: argparse.Namespace) -> None:
    """Compare folders from the parsed command line, write the files, print the tables.

    Raises:
        CommandError: The folders cannot be compared, or the files not be written.
    """
    try:
        methods = read_methods(arguments.folders, arguments.folds)
        comparison = compare_methods(methods, arguments.metrics)
    except ComparisonError as error:
        raise CommandError(str(error)) from error
    if arguments.output is not None:  # before printing, which a closed pipe can end
        try:
            _write_comparison(comparison, arguments.output)
        except (OSError, WriteError) as error:
            message = f"The comparison cannot be written: {error}. Name another folder with -o."
            raise CommandError(message) from error
    print(_format_comparison(comparison))
    if arguments.output is not None:
        print(f"\nWritten: comparison.html and comparison.json in {arguments.output}")


def compare_methods(methods: Sequence[Method], metrics: Sequence[str] | None = None) -> Comparison:
    """Compare methods with the first one.

    Args:
        methods: Two or more, of the same cases and classes.
        metrics: Names of `METRICS`; None: all that were evaluated.

    Raises:
        ComparisonError: A metric was not evaluated.
    """
    values = pd.concat({each.name: each.evaluation.values for each in methods}, names=["method"])
    if missing := [name for name in metrics or () if name not in values]:
        message = (
            f"There is no metric {', '.join(missing)} in what was evaluated: {', '.join(values)}. "
            "nnUNetv2_mapo evaluate makes the others."
        )
        raise ComparisonError(message)
    wanted = [name for name in values if name in (metrics or values)]
    titles = {name: title_of(name, methods[0].evaluation.provenance) for name in wanted}
    for name in wanted:
        if METRICS[name].higher_is_better is None:  # the sign tells the direction, the size counts
            titles[name] = f"absolute {titles[name]}"
    scores = score_cases(values[wanted])
    costs, notes = _tabulate_costs(methods), [*note_sources(methods), *_NOTES]
    return Comparison(titles, scores, summarize(scores), compare(scores), costs, notes)


def _tabulate_costs(methods: Sequence[Method]) -> pd.DataFrame:
    """`Comparison.costs`."""
    nothing = (math.nan, math.nan, math.nan)
    rows = [
        (method.name, fold, *((h.num_epochs_done, h.training_s, h.mining_s) if h else nothing))
        for method in methods
        for fold, h in (method.histories or {"": None}).items()
    ]
    columns = ["method", "fold", "epochs", "training_s", "mining_s"]
    return pd.DataFrame(rows, columns=columns).set_index(["method", "fold"])


def conclude(differences: pd.DataFrame) -> str:
    """One sentence: whether this many cases can conclude anything.

    Cases without a difference do not count for that: the test leaves them out. Of the rows of
    `compare`, that with the most cases that differ counts.
    """
    differing = differences["wins"] + differences["losses"]
    num_differing, num_tests = differing.max(), differences["p"].notna().sum()
    num_cases = num_differing + differences["ties"].iloc[differing.argmax()]
    smallest_p = 2 * 0.5**num_differing  # two of all patterns of signs: all cases better, or worse
    said = "too few to conclude, read the result as a hint."
    if smallest_p * num_tests >= LEVEL:
        said = (
            "too few to conclude anything: whatever the differences, p cannot fall below "
            f"{min(1.0, smallest_p):.2g}, times {num_tests} for as many tests; it must be below "
            f"{LEVEL}."
        )
    elif num_differing >= FEW_CASES:
        said = (
            "enough for the test to show a difference that most of them share. Where none is "
            "shown, the interval says how large it may be all the same."
        )
    differ = f", of which {num_differing} differ" if num_differing < num_cases else ""
    return f"{num_cases} case{'s' if num_cases != 1 else ''}{differ}: {said}"


def tabulate_comparison(comparison: Comparison) -> list[pd.DataFrame]:
    """Scores, differences and costs as tables of text."""
    scores = _format(comparison.summaries, ["mean", "sd", "median"], "{:.4f}".format)
    differences = _format(comparison.differences, ["mean", "low", "high"], "{:+.4f}".format)
    differences = _format(differences, ["p", "p_corrected"], "{:.2g}".format)
    is_hint = differences["wins"] + differences["losses"] < FEW_CASES
    is_hint &= differences["verdict"] != "no difference shown"
    differences["verdict"] = differences["verdict"].mask(is_hint, "hint: " + differences["verdict"])
    arrows = {name: "↑" if METRICS[name].higher_is_better else "↓" for name in comparison.titles}
    titles = {name: f"{title} {arrows[name]}" for name, title in comparison.titles.items()}
    scores, differences = scores.rename(titles), differences.rename(titles)
    methods = comparison.costs.groupby(level="method", sort=False)
    costs = methods.agg(lambda folds: folds.sum(skipna=False))
    costs = _format(costs, ["epochs"], "{:.0f}".format, "unknown")
    costs = _format(costs, ["training_s", "mining_s"], format_duration, "unknown")
    names = {"low": "95 % from", "high": "95 % to", "p_corrected": "corrected p"}
    names |= {"training_s": "training", "mining_s": "mining"}
    return [each.reset_index().rename(columns=names) for each in (scores, differences, costs)]


def _tabulate_cases(comparison: Comparison, method: str) -> pd.DataFrame:
    """Differences of each case to the baseline, as text."""
    differences = comparison.scores[method] - comparison.scores.iloc[:, 0]
    table = differences.unstack("metric")[[*comparison.titles]].rename(columns=comparison.titles)
    return _format(table, [*table], "{:+.4f}".format, "–").reset_index()


def _format(
    table: pd.DataFrame, columns: list[str], write: Callable[[float], str], missing: str = "nan"
) -> pd.DataFrame:
    def write_all(values: pd.Series) -> list[str]:
        return [missing if math.isnan(value) else write(value) for value in values]

    return table.assign(**{column: write_all(table[column]) for column in columns})


def _format_comparison(comparison: Comparison) -> str:
    """Everything that is said of a comparison but the single cases."""
    tables = [
        format_table([*table], table.astype(str).to_numpy().tolist())
        for table in tabulate_comparison(comparison)
    ]
    conclusion = conclude(comparison.differences)
    return "\n\n".join([comparison.title, conclusion, *tables, *comparison.notes])


def render_comparison(comparison: Comparison) -> Markup:
    """HTML of a comparison without the page around it, so that a report can hold it too."""
    baseline, *others = comparison.scores
    return render_part(
        "comparison_body.html",
        baseline=baseline,
        conclusion=conclude(comparison.differences),
        tables=tabulate_comparison(comparison),
        notes=comparison.notes,
        figures={name: _draw(comparison, name) for name in others},
        cases={name: _tabulate_cases(comparison, name) for name in others},
    )


def _draw(comparison: Comparison, method: str) -> list[tuple[Markup, str]]:
    """A figure with its caption for each metric."""
    both = [comparison.scores.columns[0], method]
    baseline_label, method_label = (name.replace("_", "\n_") for name in both)
    figures = []
    for metric, title in comparison.titles.items():
        pairs = comparison.scores.loc[metric][both].dropna()
        sign = 1 if METRICS[metric].higher_is_better else -1
        figure = draw_paired_dots(
            [*pairs.itertuples(index=False, name=None)],
            (sign * subtract(*(pairs[name] for name in both))).tolist(),
            (baseline_label, method_label),
            title,
        )
        figures.append((figure_to_svg(figure), f"{title}, each case"))
    return figures


def _write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the comparison as a page and as JSON, in which NaN is null."""
    tables = {
        "scores": comparison.summaries,
        "differences": comparison.differences,
        "costs": comparison.costs,
        "cases": comparison.scores,
    }
    content: dict[str, Any] = {
        name: json.loads(table.reset_index().to_json(orient="records", double_precision=15))
        for name, table in tables.items()
    }
    content["conclusion"] = conclude(comparison.differences)
    page = render_comparison(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison.html"
    write_page(path, "comparison.html", title=comparison.title, comparison=page)
    write_atomically(folder / "comparison.json", json.dumps(content, indent=1).encode())
