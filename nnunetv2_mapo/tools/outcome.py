"""What came of a training: numbers at a glance, the verdict, and its cases. First in a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from nnunetv2_mapo.support.table import format_duration
from nnunetv2_mapo.tools.case_pictures import paint_cases
from nnunetv2_mapo.tools.compare import ComparisonError, Method, note_sources, read_methods
from nnunetv2_mapo.tools.compare.statistics import score_cases
from nnunetv2_mapo.tools.compare.tables import (
    PRIMARY,
    Comparison,
    compare_methods,
    render_comparison,
)
from nnunetv2_mapo.tools.evaluate import Evaluation, tabulate_means
from nnunetv2_mapo.tools.history import History, describe_pairs
from nnunetv2_mapo.tools.pair_pictures import PairPictures, name_colours

Facts = list[tuple[str, str]]  # short numbers, as (name, value)


class Outcome(NamedTuple):
    """What is shown of a training's results.

    Attributes:
        tiles: Difference to the control (or the metric), pairs, time.
        table: Means of each metric; None without results.
        comparison: HTML of the comparison; empty without one.
        cases: Pictures of the best, the median and the worst case.
        legend: Name and colour of each class in them.
        notes: Where the numbers come from, and what is missing.
    """

    tiles: Facts
    table: tuple[list[str], list[list[str]]] | None
    comparison: Markup
    cases: list[PairPictures]
    legend: list[tuple[str, str]]
    notes: list[str]


def find_outcome(
    folder: Path,
    others: Sequence[Path],
    folds: Sequence[str] | None,
    histories: Sequence[History],
) -> Outcome:
    """What came of a model's training.

    Args:
        folder: Model folder.
        others: Model folders to compare with.
        folds: Folds that count; None: all whose validation is finished, but not `all`.
        histories: Of the folds that are shown.

    Raises:
        ComparisonError: There are others, and results are missing, or are not of the same cases,
            classes or metrics.
    """
    took = sum(history.training_s + history.mining_s for history in histories)
    tiles = [
        ("pairs, round by round, of so many samples", describe_pairs(histories)),
        ("training and mining", format_duration(took)),
    ]
    try:
        methods = read_methods([*others, folder], folds)
    except ComparisonError as error:
        if others:
            raise
        return Outcome(tiles, None, Markup(), [], [], [f"There are no results: {error}"])
    own = methods[-1]
    labels = _read_labels(folder)
    class_names = {
        str(tuple(label) if isinstance(label, list) else label): name
        for name, label in labels.items()
    }
    evaluation = replace(own.evaluation, class_names=class_names)
    comparison = compare_methods(methods) if others else None
    tiles.insert(0, _first_tile(evaluation, comparison))
    notes = [] if comparison else note_sources(methods)
    try:
        cases = _paint(methods, comparison)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        cases = []
        notes.append(f"There are no pictures of cases: {error}")
    html = render_comparison(comparison) if comparison else Markup()
    table = _shorten(tabulate_means(evaluation))
    return Outcome(tiles, table, html, cases, name_colours(labels), notes)


def _first_tile(evaluation: Evaluation, comparison: Comparison | None) -> tuple[str, str]:
    if comparison is None:
        return f"{PRIMARY}; --compare says if that is better", _digits(
            evaluation.foreground_mean()[PRIMARY]
        )
    row = comparison.answer.rows[0]
    return (
        f"{row.metric}, {row.method} minus {row.control}",
        f"{row.difference:+.3f}, {row.verdict}",
    )


def _paint(methods: Sequence[Method], comparison: Comparison | None) -> list[PairPictures]:
    """Cases of the primary comparison, or without one of the model itself."""
    if comparison is None:
        values = {methods[-1].name: methods[-1].evaluation.values}
        scores, names = score_cases(pd.concat(values, names=["method"])), [methods[-1].name]
    else:
        pair, scores = next(iter(comparison.scores_of_pairs.items()))
        names = [*pair]
    named = {method.name: method for method in methods}
    return paint_cases([named[name] for name in names], scores.loc[PRIMARY], PRIMARY)


def _read_labels(folder: Path) -> dict[str, Any]:
    """Labels of the model's `dataset.json`; nothing where that is missing."""
    try:
        labels: dict[str, Any] = json.loads((folder / "dataset.json").read_bytes())["labels"]
    except (OSError, ValueError, KeyError):
        return {}
    return labels


def _shorten(table: tuple[list[str], list[list[str]]]) -> tuple[list[str], list[list[str]]]:
    header, rows = table
    return header, [[title, *map(_digits, map(float, values))] for title, *values in rows]


def _digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"
