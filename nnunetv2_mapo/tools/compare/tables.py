"""A comparison as text, HTML, JSON, CSV and LaTeX: the same tables in all of them."""

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
from nnunetv2_mapo.support.table import WIDTH, format_duration, format_table, wrap, wrap_commands
from nnunetv2_mapo.tools.compare import ComparisonError, Method, note_sources, read_methods
from nnunetv2_mapo.tools.compare.control import Pair, choose_pairs
from nnunetv2_mapo.tools.compare.statistics import compare, score_cases, subtract, summarize
from nnunetv2_mapo.tools.compare.verdict import Answer, answer, tabulate_rows
from nnunetv2_mapo.tools.evaluate import title_of
from nnunetv2_mapo.tools.figures import draw_paired_dots
from nnunetv2_mapo.tools.metrics import METRICS
from nnunetv2_mapo.tools.page import figure_to_svg, render_part, write_page

PRIMARY = "Dice"  # metric of the primary comparison
_NOTES = [
    "The first row is the primary comparison: one test, without correction. All others are "
    "exploratory, corrected by Holm among themselves. p: Wilcoxon signed-rank test, two-sided. "
    "95 %: interval of the mean by bootstrap (BCa) over the cases.",
    "Test and interval are about other cases, not about other trainings: a second seed of the same "
    "method may differ by as much.",
]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found of methods.

    Attributes:
        answer: What is said first.
        titles: Of each metric, with its unit where it has one.
        scores: See `score_cases`; of all methods.
        scores_of_pairs: The same of each pair alone; the first is the primary comparison.
        differences: See `compare`.
        costs: A row for each method and fold, columns `epochs`, `training_s` and `mining_s`; NaN
            where its training cannot be read.
        notes: Where the numbers come from, and how to read them.
    """

    answer: Answer
    titles: dict[str, str]
    scores: pd.DataFrame
    scores_of_pairs: dict[Pair, pd.DataFrame]
    differences: pd.DataFrame
    costs: pd.DataFrame
    notes: list[str]

    @property
    def title(self) -> str:
        """Names of the primary pair."""
        method, control = next(iter(self.scores_of_pairs))
        return f"{method} compared with {control}"


def run_compare(arguments: argparse.Namespace) -> None:
    """Compare folders from the parsed command line, write the files, print the answer.

    Raises:
        CommandError: The folders cannot be compared, or the files not be written.
    """
    try:
        comparison = compare_methods(read_methods(arguments.folders, arguments.folds))
    except ComparisonError as error:
        raise CommandError(str(error)) from error
    try:  # before printing, which a closed pipe can end
        written = _write_files(comparison, arguments.output, arguments.table)
    except (OSError, WriteError) as error:
        message = f"The comparison cannot be written: {error}. Name another place."
        raise CommandError(message) from error
    print(format_comparison(comparison, with_details=arguments.details))
    for line in written:
        print(f"Written: {line}")


def compare_methods(methods: Sequence[Method], primary: str = PRIMARY) -> Comparison:
    """Compare methods with their controls.

    Args:
        methods: Two or more, of the same cases and classes.
        primary: Name of the metric that decides, one of `METRICS`.

    Raises:
        ComparisonError: That metric was not evaluated.
    """
    named = {each.name: each for each in methods}
    values = {name: each.evaluation.values for name, each in named.items()}
    titles = {name: title_of(name, methods[0].evaluation.provenance)
              for name in methods[0].evaluation.values}  # fmt: skip
    if primary not in titles:
        message = f"{primary}, by which methods are compared, is not in: {', '.join(titles)}."
        raise ComparisonError(message)
    for name in titles:
        if METRICS[name].higher_is_better is None:  # the sign tells the direction, the size counts
            titles[name] = f"absolute {titles[name]}"
    # Each pair alone: what others find in an empty reference must not change its difference.
    pairs = {
        pair: score_cases(pd.concat({name: values[name] for name in pair}, names=["method"]))
        for pair in choose_pairs(methods)
    }
    differences = compare(pairs, primary)
    return Comparison(
        answer(differences, named, primary, titles[primary]),
        titles,
        score_cases(pd.concat(values, names=["method"])),
        pairs,
        differences,
        _tabulate_costs(methods),
        [*_NOTES, *note_sources(methods)],
    )


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


def tabulate_details(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Scores, differences of each pair in every metric, and costs as tables of text, by title."""
    titles = {name: f"{title} {_arrow(name)}" for name, title in comparison.titles.items()}
    scores = _format(summarize(comparison.scores), ["mean", "sd", "median"], "{:.4f}".format)
    differences = _format(comparison.differences, ["mean", "low", "high"], "{:+.4f}".format)
    differences = _format(differences, ["p", "p_corrected"], "{:.2g}".format)
    differences = differences.drop(columns="is_primary")
    costs = comparison.costs.groupby(level="method", sort=False)
    costs = costs.agg(lambda folds: folds.sum(skipna=False))
    costs = _format(costs, ["epochs"], "{:.0f}".format, "unknown")
    costs = _format(costs, ["training_s", "mining_s"], format_duration, "unknown")
    tables = {
        str(pair): differences.xs(pair, level=("method", "control"))
        for pair in comparison.scores_of_pairs
    }
    tables |= {f"Scores, {titles[name]}": scores.loc[name] for name in titles}
    tables["Costs"] = costs
    names = {"low": "from", "high": "to", "p_corrected": "corrected p"}
    names |= {"training_s": "training", "mining_s": "mining"}
    return {
        title: table.rename(titles).reset_index().rename(columns=names)
        for title, table in tables.items()
    }


def _arrow(metric: str) -> str:
    return "↑" if METRICS[metric].higher_is_better else "↓"


def _tabulate_cases(comparison: Comparison, pair: Pair) -> pd.DataFrame:
    """Differences of each case to the control, as text."""
    scores = comparison.scores_of_pairs[pair]
    table = (scores[pair.method] - scores[pair.control]).unstack("metric")
    table = table[[*comparison.titles]].rename(columns=comparison.titles)
    return _format(table, [*table], "{:+.4f}".format, "–").reset_index()


def _format(
    table: pd.DataFrame, columns: list[str], write: Callable[[float], str], missing: str = "nan"
) -> pd.DataFrame:
    def write_all(values: pd.Series) -> list[str]:
        return [missing if math.isnan(value) else write(value) for value in values]

    return table.assign(**{column: write_all(table[column]) for column in columns})


def format_comparison(comparison: Comparison, *, with_details: bool) -> str:
    """The answer as text and, on demand, everything else but the single cases."""
    found = comparison.answer
    parts = [_format_table(tabulate_rows(found.rows)), wrap(found.meaning)]
    parts.append(f"Next:\n{wrap_commands(found.advice)}")
    if with_details:
        tables = tabulate_details(comparison).items()
        parts += [f"{title}\n{_format_table(table)}" for title, table in tables]
        parts += map(wrap, comparison.notes)
    return "\n\n".join(parts)


def _format_table(table: pd.DataFrame) -> str:
    return format_table([*table], table.astype(str).to_numpy().tolist(), WIDTH)


def render_comparison(comparison: Comparison) -> Markup:
    """HTML of a comparison without the page around it, so that a report can hold it too."""
    return render_part(
        "comparison_body.html",
        answer=comparison.answer,
        rows=tabulate_rows(comparison.answer.rows),
        details=tabulate_details(comparison),
        notes=comparison.notes,
        figures={pair: _draw(comparison, pair) for pair in comparison.scores_of_pairs},
        cases={pair: _tabulate_cases(comparison, pair) for pair in comparison.scores_of_pairs},
    )


def _draw(comparison: Comparison, pair: Pair) -> list[tuple[Markup, str]]:
    """A figure with its caption for each metric."""
    both = [pair.control, pair.method]
    control_label, method_label = (name.replace("_", "\n_") for name in both)
    figures = []
    for metric, title in comparison.titles.items():
        values = comparison.scores_of_pairs[pair].loc[metric][both].dropna()
        sign = 1 if METRICS[metric].higher_is_better else -1
        figure = draw_paired_dots(
            [*values.itertuples(index=False, name=None)],
            (sign * subtract(*(values[name] for name in both))).tolist(),
            (control_label, method_label),
            title,
        )
        figures.append((figure_to_svg(figure), f"{title}, each case"))
    return figures


def _write_files(comparison: Comparison, folder: Path | None, table: Path | None) -> list[str]:
    """Write what is asked for; where each file is."""
    if table is not None:
        _write_table(comparison.answer, table)
    if folder is not None:
        _write_comparison(comparison, folder)
    written = [folder / "comparison.html", folder / "comparison.json"] if folder else []
    return [str(path) for path in (*written, table) if path]


def _write_table(found: Answer, path: Path) -> None:
    """Write the answer's rows: numbers as CSV, or the table that is shown as LaTeX."""
    content = pd.DataFrame(found.rows).to_csv(index=False)
    if path.suffix == ".tex":
        shown = tabulate_rows(found.rows).to_latex(index=False, escape=True)
        content = shown.replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")
    write_atomically(path, content.encode())


def _write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the comparison as a page and as JSON, in which NaN is null."""
    tables = {
        "answer": pd.DataFrame(comparison.answer.rows).rename_axis("row"),
        "scores": summarize(comparison.scores),
        "differences": comparison.differences,
        "costs": comparison.costs,
        "cases": comparison.scores,
    }
    content: dict[str, Any] = {
        name: json.loads(table.reset_index().to_json(orient="records", double_precision=15))
        for name, table in tables.items()
    }
    content["meaning"] = comparison.answer.meaning
    page = render_comparison(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison.html"
    write_page(path, "comparison.html", title=comparison.title, comparison=page)
    write_atomically(folder / "comparison.json", json.dumps(content, indent=1).encode())
