"""Ratios of two timings that hold on a noisy machine, and the table that shows them.

Only ratios are reported: the two functions run in turns, A B B A …, so that a slow moment of the
machine meets both, and the median of the pairwise ratios counts. What is timed is the CPU time of
this process on a single thread, from which other jobs take nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Ratios(NamedTuple):
    """Ratios of one comparison over all its repeats, dimensionless."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def summarize(ratios: Sequence[float]) -> Ratios:
    """Median, least and largest of pairwise ratios."""
    return Ratios(statistics.median(ratios), min(ratios), max(ratios))


def time_ratios(
    measured: Callable[[], object], baseline: Callable[[], object], repeats: int
) -> Ratios:
    """Time of `measured` divided by that of `baseline`, run in turns after one warm-up of each.

    Which of the two comes first changes with every repeat.

    Args:
        measured: Function without arguments.
        baseline: The same.
        repeats: Number of pairs, >= 1.

    Returns:
        Ratios of the CPU times.
    """
    torch.set_num_threads(1)
    measured()
    baseline()
    ratios = []
    for repeat in range(repeats):
        if repeat % 2:
            seconds_baseline, seconds = _time(baseline), _time(measured)
        else:
            seconds, seconds_baseline = _time(measured), _time(baseline)
        ratios.append(seconds / seconds_baseline)
    return summarize(ratios)


def _time(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is compared.
        ratios: The measured ratios.
        bar: What the median must not be above; None where it is measured for the record.
        at_least: Turns the bar round: the median must not be below.
    """

    name: str
    ratios: Ratios
    bar: float | None = None
    at_least: bool = False

    def __str__(self) -> str:
        if self.bar is None:
            return f"| {self.name} | {self.ratios} | – | – |"
        is_met = self.ratios.median >= self.bar if self.at_least else self.ratios.median <= self.bar
        sign, verdict = "≥" if self.at_least else "≤", "yes" if is_met else "**no**"
        return f"| {self.name} | {self.ratios} | {sign} {self.bar:.2f} | {verdict} |"


def print_table(rows: Iterable[Row]) -> None:
    """Print rows as a Markdown table, each as soon as it is measured."""
    print("| comparison | ratio: median (min-max) | bar | met |\n|---|---|---|---|", flush=True)
    for row in rows:
        print(row, flush=True)


def parse_repeats(description: str | None, default: int) -> int:
    """Read `--repeats`, the number of pairs of each comparison, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=default, help="default: %(default)s")
    repeats: int = parser.parse_args().repeats
    return repeats
