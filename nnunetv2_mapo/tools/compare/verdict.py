"""One answer: a row for each pair of methods, what the primary one means, and what to do next.

The terminal, the pages and the files show these very rows.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nnunetv2_mapo.tools.compare import Method
from nnunetv2_mapo.tools.compare.control import (
    Pair,
    is_control,
    list_mixed,
    name_control,
    prefers,
)
from nnunetv2_mapo.tools.compare.statistics import FEW_CASES, LEVEL, NOT_SHOWN
from nnunetv2_mapo.tools.history import History, describe_pairs, has_no_pairs
from nnunetv2_mapo.tools.metrics import METRICS
from nnunetv2_mapo.tools.train_command import (
    ModelName,
    count_folds,
    find_beside,
    find_device,
    name_of,
    say_finish,
    say_train,
)


class Row(NamedTuple):
    """The difference of a pair of methods in a metric.

    Attributes:
        method: Name.
        control: Name of what it is compared with.
        metric: Name, with its unit where it has one.
        difference: Mean over the cases, method minus control.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Corrected if it is exploratory.
        verdict: In words.
        is_primary: Whether this is the comparison that was chosen beforehand.
        pairs: Of each round of the method, see `describe_pairs`.
    """

    method: str
    control: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    verdict: str
    is_primary: bool
    pairs: str


class Answer(NamedTuple):
    """What is said first.

    Attributes:
        rows: In the primary metric; the primary comparison first.
        meaning: Of that row, in a sentence.
        advice: Commands, one line each.
        is_about_preferences: False where the training had no pair to learn from.
    """

    rows: list[Row]
    meaning: str
    advice: str
    is_about_preferences: bool = True


def make_row(found: pd.Series, pair: Pair, title: str, method: Method) -> Row:
    """Row of a result of `statistics.compare`."""
    is_hint = found["verdict"] != NOT_SHOWN and found["wins"] + found["losses"] < FEW_CASES
    verdict = f"hint: {found['verdict']}" if is_hint else found["verdict"]
    pairs = describe_pairs([*method.histories.values()]) if method.histories else "unknown"
    is_primary = bool(found["is_primary"])
    mean, low, high, p = (found[column] for column in ("mean", "low", "high", "p_corrected"))
    return Row(*pair, title, mean, low, high, p, verdict, is_primary, pairs)


def answer(
    differences: pd.DataFrame, methods: Mapping[str, Method], primary: str, title: str
) -> Answer:
    """The answer of a comparison.

    Args:
        differences: As of `statistics.compare`.
        methods: By their names.
        primary: Name of the primary metric.
        title: The same with its unit.
    """
    of_primary = differences.loc[primary]
    rows = [
        make_row(found, Pair(*names), title, methods[names[0]])
        for names, found in of_primary.iterrows()
    ]
    first, found = rows[0], of_primary.iloc[0]
    method, control = methods[first.method], methods[first.control]
    histories = [each for each in method.histories.values() if each is not None]
    name = name_of(method.folder)
    if name and has_no_pairs(histories):
        meaning = (
            f"{first.method} had no pair in any round: it is a control itself, and this says "
            "nothing about preferences."
        )
        return Answer(rows, meaning, _preview(name, histories[0]), is_about_preferences=False)
    meaning = explain(first, found)
    if name and prefers(method) and (reason := _why_no_control(method, control)):
        meaning += f" {reason}: only a control shows what preferences do."
        return Answer(rows, meaning, _get_control(method, name, control, histories[0]))
    return Answer(rows, meaning, _go_on(method, control))


def _why_no_control(method: Method, other: Method) -> str:
    """Why the difference is not the effect of preferences; empty if it is."""
    if mixed := list_mixed(method, other):
        return f"This mixes preferences with {' and '.join(mixed)}"
    if prefers(other):
        return f"{other.name} learns from preferences as well"
    return "" if is_control(other, method) else f"{other.name} is not known to be a control"


def explain(row: Row, found: pd.Series) -> str:
    """What the primary row means, in a sentence."""
    num_differing = found["wins"] + found["losses"]
    num_cases = num_differing + found["ties"]
    smallest_p = 2 * 0.5**num_differing  # two of all patterns of signs: all cases better, or worse
    cases = f"{num_cases} case{'s' if num_cases != 1 else ''}"
    if smallest_p >= LEVEL:
        return (
            f"Too few to conclude anything: {num_differing} of {cases} differ, so p cannot fall "
            f"below {min(1.0, smallest_p):.2g}; it must be below {LEVEL}."
        )
    if found["verdict"] == NOT_SHOWN:
        return (
            f"{cases} show no difference; in others like them it may be anything from "
            f"{row.low:+.3f} to {row.high:+.3f}."
        )
    hint = "A hint, of few cases: " if num_differing < FEW_CASES else ""
    return (
        f"{hint}{row.method} is {found['verdict']} than {row.control}: of {cases}, "
        f"{found['wins']} gain and {found['losses']} lose."
    )


def tabulate_rows(rows: list[Row]) -> pd.DataFrame:
    """Rows as a table of text."""
    arrow = "↑" if METRICS[rows[0].metric.split(" [")[0]].higher_is_better else "↓"
    return pd.DataFrame(
        {
            "method": f"{row.method} minus {row.control}" + " (exploratory)" * (not row.is_primary),
            f"{row.metric} {arrow}": _sign(row.difference),
            "95 % interval": f"{_sign(row.low)} to {_sign(row.high)}",
            "verdict": row.verdict,
            "pairs per round": row.pairs,
        }
        for row in rows
    )


def _sign(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:+.3f}"


# What to do next ----------------------------------------------------------------------------------


def _preview(name: ModelName, history: History) -> str:
    words = ["nnUNetv2_mapo", "preview", "-d", name.dataset, "-c", name.configuration]
    return shlex.join([*words, "-f", history.fold, "-tr", name.trainer, "-p", name.plans])


def _get_control(method: Method, name: ModelName, other: Method, history: History) -> str:
    """Of a method that was compared with something else: the command that trains its control.

    A control that is trained already is compared with. If it was, and was trained in another way,
    it is trained once more where MAPO sets that aside, but not where nnU-Net writes over it.
    """
    trainer = name_control(name.trainer, history)
    name = name._replace(trainer=trainer)
    control = find_beside(method.folder, name)
    is_other = control.resolve() == other.folder.resolve()
    if is_other and "_MAPO" in trainer:
        return say_train(name, history.fold, find_device(method.folder))
    if is_other or not trainer:
        return _compare(other.folder, method, "-o", "comparison")
    command = say_finish(method.folder, name, history.fold)
    return command or _compare(control, method, "-f", history.fold)


def _go_on(method: Method, control: Method) -> str:
    """More cases by the next fold of both; with all folds, where the cases can be looked at."""
    named = [(each.folder, name_of(each.folder)) for each in (method, control)]
    models = [(folder, name) for folder, name in named if name]
    if len(models) == len(named) and "all" not in method.histories:
        num_folds = count_folds(models[0][1].dataset)
        others = {*map(str, range(num_folds))} - {*method.histories}
        for fold in sorted(others, key=int):
            if commands := [*filter(None, (say_finish(*model, fold) for model in models))]:
                return "\n".join(commands)
        if others:  # are finished, and were left out
            return _compare(control.folder, method)
    return _compare(control.folder, method, "-o", "comparison")


def _compare(control: Path, method: Method, *options: str) -> str:
    return shlex.join(["nnUNetv2_mapo", "compare", str(control), str(method.folder), *options])
