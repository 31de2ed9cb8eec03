"""A comparison as sentences and tables, which Markdown and HTML share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nnunetv2_mapo.tools.compare.comparison import (
    FEW_CASES,
    LEVEL,
    Difference,
    Direction,
    MetricComparison,
)
from nnunetv2_mapo.tools.compare.methods import Method
from nnunetv2_mapo.tools.history import format_duration


class Table(NamedTuple):
    """Header and rows of text."""

    header: list[str]
    rows: list[list[str]]


class ComparisonText(NamedTuple):
    """What is said of a comparison.

    Attributes:
        methods: Names, the baseline first.
        conclusion: Whether the number of cases can conclude anything.
        verdicts: A sentence for each metric and method but the baseline.
        scores: Mean, standard deviation and median of each metric and method.
        differences: Differences to the baseline with interval, test, wins.
        costs: Epochs and time of each method.
        cases: Title and table of the differences of each case, for each method.
        notes: How to read it.
    """

    methods: list[str]
    conclusion: str
    verdicts: list[str]
    scores: Table
    differences: Table
    costs: Table
    cases: list[tuple[str, Table]]
    notes: list[str]


def describe_comparison(
    comparisons: Sequence[MetricComparison], methods: Sequence[Method], notes: Sequence[str]
) -> ComparisonText:
    """Text of a comparison.

    Args:
        comparisons: One of each metric.
        methods: Those that were compared, for what they cost.
        notes: What a reader should know besides.
    """
    baseline, *others = [method.name for method in methods]
    found = [(each, name, each.differences[name]) for each in comparisons for name in others]
    num_tests = sum(not math.isnan(difference.p) for _, _, difference in found)
    most = max((difference for _, _, difference in found), key=lambda each: each.num_differing)
    return ComparisonText(
        methods=[baseline, *others],
        conclusion=explain_num_cases(len(most.cases), most.num_differing, num_tests),
        verdicts=[
            explain_verdict(name, baseline, each.direction, difference, num_tests)
            for each, name, difference in found
        ],
        scores=_tabulate_scores(comparisons),
        differences=_tabulate_differences(found, num_tests),
        costs=_tabulate_costs(methods),
        cases=[(f"{name} minus {baseline}", _tabulate_cases(comparisons, name)) for name in others],
        notes=[
            *notes,
            f"p: Wilcoxon signed-rank test, two-sided; corrected by Holm over all {num_tests} "
            "tests that are shown. Interval: of the mean, 95 %, by bootstrap (BCa) over the cases.",
            "The test and the interval are about other cases, not about other trainings: a second "
            "seed of the same method may differ by as much.",
        ],
    )


def explain_verdict(
    method: str, baseline: str, direction: Direction, found: Difference, num_tests: int
) -> str:
    """One sentence: the verdict, never without its interval and the number of cases."""
    num_cases = len(found.cases)
    if num_cases == 0:
        return f"{direction.title}: no case has a value of both {method} and {baseline}."
    low, high = found.interval
    said = f"no difference between {method} and {baseline} shown"
    if found.verdict != "no difference shown":
        said = f"{method} is {found.verdict} than {baseline}"
        said = f"a hint that {said}" if found.num_differing < FEW_CASES else said
    ties = explain_ties(found, num_tests)
    return (
        f"{direction.title}: {said}; mean difference {found.mean:+.4f}, 95 % interval {low:+.4f} "
        f"to {high:+.4f}, corrected p {format_p(found.p_adjusted)}, {_count_cases(num_cases)}"
        f"{ties and f', {ties}'}."
    )


def name_verdict(found: Difference, num_tests: int) -> str:
    """The verdict in a few words, for a table."""
    is_hint = found.verdict != "no difference shown" and found.num_differing < FEW_CASES
    ties = explain_ties(found, num_tests)
    return f"{'hint: ' if is_hint else ''}{found.verdict}{ties and f' ({ties})'}"


def explain_ties(found: Difference, num_tests: int) -> str:
    """How few cases differ where ties leave the test too few; else nothing."""
    if found.num_ties == 0 or find_smallest_p(found.num_differing) * num_tests < LEVEL:
        return ""
    return f"only {found.num_differing} of {_count_cases(len(found.cases))} differ"


def find_smallest_p(num_differing: int) -> float:
    """Smallest p that the Wilcoxon test can give.

    All differences of one sign are 2 of 2 ** n equally likely patterns of signs.
    """
    return min(1.0, 2 * 0.5**num_differing)


def explain_num_cases(num_cases: int, num_differing: int, num_tests: int) -> str:
    """One sentence: whether this many cases can conclude anything.

    Args:
        num_cases: Pairs of values.
        num_differing: Those that are no ties: the test uses them alone.
        num_tests: Tests that the correction counts.
    """
    cases, differ = _count_cases(num_cases), ""
    if num_differing < num_cases:
        cases, differ = f"{cases}, of which {num_differing} differ", " differ"
    smallest = find_smallest_p(num_differing)
    corrected = min(1.0, smallest * num_tests)
    if corrected >= LEVEL:
        test, p = (
            ("test", smallest)
            if smallest >= LEVEL
            else (f"test that is corrected for {num_tests}", corrected)
        )
        return (
            f"Too few cases{differ} to conclude anything: with {cases}, the smallest p that a "
            f"{test} can give is {p:.2g}, whatever the differences; {LEVEL} is asked for."
        )
    if num_differing < FEW_CASES:
        return f"{cases}: too few to conclude, read the result as a hint."
    return (
        f"{cases}: enough for the test to show a difference that most of them "
        "share. Where none is shown, the interval says how large it may be all the same."
    )


def format_p(p: float) -> str:
    """A p value with its relation."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"


def _count_cases(num_cases: int) -> str:
    return f"{num_cases} case{'s' if num_cases != 1 else ''}"


def _tabulate_scores(comparisons: Sequence[MetricComparison]) -> Table:
    rows = [
        [
            each.direction.title if number == 0 else "",
            name,
            f"{summary.mean:.4f} ± {summary.sd:.4f}",
            f"{summary.median:.4f}",
            str(summary.num_cases),
        ]
        for each in comparisons
        for number, (name, summary) in enumerate(each.summaries.items())
    ]
    return Table(["metric", "method", "mean ± sd", "median", "cases"], rows)


def _tabulate_differences(
    found: Sequence[tuple[MetricComparison, str, Difference]], num_tests: int
) -> Table:
    header = ["metric", "method minus baseline", "verdict", "mean", "95 % interval", "p"]
    header += ["corrected p", "wins / ties / losses", "left out"]
    rows = [
        [
            f"{each.direction.title} ({'↑' if each.direction.higher_is_better else '↓'})",
            name,
            name_verdict(difference, num_tests),
            f"{difference.mean:+.4f}",
            "{:+.4f} to {:+.4f}".format(*difference.interval),
            f"{difference.p:.2g}",
            f"{difference.p_adjusted:.2g}",
            f"{difference.num_wins} / {difference.num_ties} / {difference.num_losses}",
            str(difference.num_undefined),
        ]
        for each, name, difference in found
    ]
    return Table(header, rows)


def _tabulate_costs(methods: Sequence[Method]) -> Table:
    rows = []
    for method in methods:
        known = [history for history in method.histories.values() if history is not None]
        if not known or len(known) < len(method.histories):
            rows.append([method.name, "unknown", "unknown", "unknown"])
            continue
        epochs = sorted({history.num_epochs_done for history in known})
        rows.append(
            [
                method.name,
                " or ".join(map(str, epochs)),
                format_duration(sum(history.training_s for history in known)),
                format_duration(sum(history.mining_s for history in known)),
            ]
        )
    return Table(["method", "epochs of a fold", "training, all folds", "mining, all folds"], rows)


def _tabulate_cases(comparisons: Sequence[MetricComparison], method: str) -> Table:
    cases = sorted(comparisons[0].values[method])
    rows = [
        [
            case,
            *(
                f"{each.differences[method].cases.get(case, math.nan):+.4f}".replace("+nan", "–")
                for each in comparisons
            ),
        ]
        for case in cases
    ]
    return Table(["case", *(each.direction.title for each in comparisons)], rows)


def format_markdown(text: ComparisonText, *, with_cases: bool) -> str:
    """Markdown of a comparison.

    Args:
        text: What is said.
        with_cases: Whether to add the differences of each case.
    """
    baseline, *others = text.methods
    parts = [
        f"# {', '.join(others)} compared with {baseline}",
        f"**{text.conclusion}**",
        "\n".join(f"- {verdict}" for verdict in text.verdicts),
        format_markdown_table(text.scores),
        f"Differences to {baseline}:",
        format_markdown_table(text.differences),
        format_markdown_table(text.costs),
        *text.notes,
    ]
    if with_cases:
        for title, table in text.cases:
            parts += [f"## {title}, each case", format_markdown_table(table)]
    return "\n\n".join(parts)


def format_markdown_table(table: Table) -> str:
    """Markdown table that is also readable as it is: padded cells, first column to the left."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.header, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = [
        "-" * width if place == 0 else "-" * (width - 1) + ":" for place, width in enumerate(widths)
    ]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(lines)
