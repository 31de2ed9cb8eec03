"""Methods compared on the same cases: paired differences, their interval, test and verdict.

The unit of analysis is the case: one value of a metric for each case and method. Everything is
compared with the first method, the baseline. Knows no files and nothing of nnU-Net.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

LEVEL = 0.05  # of the tests, after correction; the intervals are 95 % ones
FEW_CASES = 20  # below it, a result is called a hint
TIE = 1e-9  # differences up to this are rounding errors of equal values
NUM_RESAMPLES = 9999

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Direction:
    """A metric and which of its values are better.

    Attributes:
        metric: Name of the metric.
        title: The same for a reader, with its unit where it has one.
        higher_is_better: False where lower values are better.
    """

    metric: str
    title: str
    higher_is_better: bool


@dataclass(frozen=True)
class Summary:
    """Values of one method and metric.

    Attributes:
        mean: Over the cases that have a value; NaN without any.
        sd: Standard deviation of the sample (n - 1); NaN below two cases.
        median: Over the same cases.
        num_cases: Cases that have a value.
        num_undefined: Cases whose value is NaN.
    """

    mean: float
    sd: float
    median: float
    num_cases: int
    num_undefined: int


@dataclass(frozen=True)
class Difference:
    """Method minus baseline on one metric.

    Attributes:
        cases: Difference of each case that has a value of both.
        num_undefined: Cases that are left out because a value of either is NaN.
        mean: Of the differences; NaN without any.
        interval: 95 % interval of the mean, see `bootstrap_interval`.
        p: Of the Wilcoxon signed-rank test, see `wilcoxon_p`.
        p_adjusted: The same after Holm's correction over all tests of the comparison.
        num_wins: Cases in which the method is better than the baseline.
        num_ties: Cases in which they are equal up to `TIE`.
        num_losses: Cases in which it is worse.
        verdict: To be read together with the interval and the number of cases.
    """

    cases: dict[str, float]
    num_undefined: int
    mean: float
    interval: tuple[float, float]
    p: float
    p_adjusted: float
    num_wins: int
    num_ties: int
    num_losses: int
    verdict: Verdict

    @property
    def num_differing(self) -> int:
        """Cases that the test uses: it leaves ties out."""
        return self.num_wins + self.num_losses


@dataclass(frozen=True)
class MetricComparison:
    """All methods on one metric.

    Attributes:
        direction: The metric.
        values: Method -> case -> value.
        summaries: Summary of each method.
        differences: Difference of each method but the baseline to the baseline.
    """

    direction: Direction
    values: dict[str, dict[str, float]]
    summaries: dict[str, Summary]
    differences: dict[str, Difference]


def compare(
    values: Mapping[str, Mapping[str, Mapping[str, float]]], directions: Sequence[Direction]
) -> list[MetricComparison]:
    """Compare methods with the first one, the baseline.

    Args:
        values: Method -> metric -> case -> value; NaN where the metric is not defined.
        directions: The metrics.

    Raises:
        ValueError: There are not two methods, or they do not have the same cases.
    """
    baseline, *others = values
    if not others:
        message = f"Only {baseline} is given: a comparison needs two methods or more."
        raise ValueError(message)
    for direction in directions:
        check_cases({method: values[method][direction.metric] for method in values})
    pairs = [(direction, method) for direction in directions for method in others]
    cases = [
        subtract(values[baseline][direction.metric], values[method][direction.metric])
        for direction, method in pairs
    ]
    p_values = [wilcoxon_p(list(each.values())) for each in cases]
    differences = {
        (direction.metric, method): _describe_difference(
            each, p, p_adjusted, len(values[baseline][direction.metric]), direction
        )
        for (direction, method), each, p, p_adjusted in zip(
            pairs, cases, p_values, holm(p_values), strict=True
        )
    }
    return [
        MetricComparison(
            direction,
            {method: dict(values[method][direction.metric]) for method in values},
            {method: summarize_values(values[method][direction.metric]) for method in values},
            {method: differences[direction.metric, method] for method in others},
        )
        for direction in directions
    ]


def check_cases(cases: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse methods that do not have the same cases.

    Args:
        cases: Method -> case -> anything.

    Raises:
        ValueError: It names the cases that a method lacks.
    """
    every = set().union(*cases.values())
    missing = {method: sorted(every - set(its)) for method, its in cases.items()}
    if any(missing.values()) or not every:
        lines = [f"{method} lacks {', '.join(lacks)}" for method, lacks in missing.items() if lacks]
        message = (
            f"The methods do not have the same cases: {'; '.join(lines)}. Only the same cases can "
            "be compared."
            if every
            else "There is no case to compare."
        )
        raise ValueError(message)


def summarize_values(values: Mapping[str, float]) -> Summary:
    """Mean, standard deviation and median over the cases that have a value."""
    defined = np.array([value for value in values.values() if not math.isnan(value)])
    num_undefined = len(values) - len(defined)
    if len(defined) == 0:
        return Summary(math.nan, math.nan, math.nan, 0, num_undefined)
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else math.nan
    return Summary(
        float(defined.mean()), sd, float(np.median(defined)), len(defined), num_undefined
    )


def subtract(baseline: Mapping[str, float], method: Mapping[str, float]) -> dict[str, float]:
    """Method minus baseline in each case that has a value of both; ties are exactly 0."""
    differences = {case: method[case] - baseline[case] for case in sorted(baseline)}
    return {
        case: 0.0 if abs(difference) <= TIE else difference
        for case, difference in differences.items()
        if not math.isnan(difference)
    }


def bootstrap_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean: bias-corrected and accelerated bootstrap over the cases, seeded.

    It says how much the mean varies with the cases, not with another training of the methods.

    Returns:
        Low and high; the value itself where all differences are equal, NaN below two cases.
    """
    values = np.array(differences)
    if len(values) < 2:
        return math.nan, math.nan
    if np.ptp(values) <= TIE:  # every resample is the same, and the acceleration 0 / 0
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=1000,
        confidence_level=0.95,
        method="BCa",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p value of the Wilcoxon signed-rank test.

    Cases without a difference are left out, as Wilcoxon did. The test is exact where scipy can: for
    up to 50 cases whose differences have no equal sizes, up to 13 with some.

    Returns:
        1 where no case has a difference; NaN without a case.
    """
    if not differences:
        return math.nan
    nonzero = [difference for difference in differences if difference != 0]
    return float(stats.wilcoxon(nonzero).pvalue) if nonzero else 1.0


def subtract_rank_sums(differences: Sequence[float]) -> float:
    """Rank sum of the positive differences minus that of the negative ones, as in Wilcoxon's test.

    Returns:
        Above 0 where the test speaks for positive differences; 0 without any difference.
    """
    nonzero = np.array([difference for difference in differences if difference != 0])
    return float((np.sign(nonzero) * stats.rankdata(np.abs(nonzero))).sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values for their number.

    Args:
        p_values: NaN where there was no test: it stays NaN and does not count.

    Returns:
        Adjusted p values, which are held against the level of a single test, in the same order.
    """
    adjusted = [math.nan] * len(p_values)
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def _describe_difference(
    cases: dict[str, float], p: float, p_adjusted: float, num_cases: int, direction: Direction
) -> Difference:
    values = list(cases.values())
    gains = [value if direction.higher_is_better else -value for value in values]
    interval = bootstrap_interval(values)
    return Difference(
        cases=cases,
        num_undefined=num_cases - len(cases),
        mean=float(np.mean(values)) if values else math.nan,
        interval=interval,
        p=p,
        p_adjusted=p_adjusted,
        num_wins=sum(gain > 0 for gain in gains),
        num_ties=sum(gain == 0 for gain in gains),
        num_losses=sum(gain < 0 for gain in gains),
        verdict=judge(
            interval,
            p_adjusted,
            subtract_rank_sums(values),
            higher_is_better=direction.higher_is_better,
        ),
    )


def judge(
    interval: tuple[float, float], p_adjusted: float, rank_sums: float, *, higher_is_better: bool
) -> Verdict:
    """Verdict on a method: a difference is shown where test and interval agree on its direction.

    They disagree where many small losses meet a few large wins: the test sees the losses, the
    interval of the mean the wins.

    Args:
        interval: 95 % interval of the mean difference, method minus baseline.
        p_adjusted: After the correction for all tests.
        rank_sums: Direction of the test, see `subtract_rank_sums`.
        higher_is_better: Of the metric.
    """
    low, high = interval
    if p_adjusted < LEVEL and ((low > 0 and rank_sums > 0) or (high < 0 and rank_sums < 0)):
        return "better" if (low > 0) == higher_is_better else "worse"
    return "no difference shown"
