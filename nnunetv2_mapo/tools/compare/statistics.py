"""What can be concluded from methods on the same cases: differences, interval, test, verdict.

The unit of analysis is the case: one value of a metric for each case and method. Knows no files
and nothing of nnU-Net.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from nnunetv2_mapo.tools.metrics import METRICS

LEVEL = 0.05  # of the tests; the intervals are 95 % ones
FEW_CASES = 20  # below it, a result is called a hint
NOT_SHOWN: Literal["not shown"] = "not shown"  # verdict without proof of a difference
TIE = 1e-9  # differences up to this are rounding errors of equal values
NUM_RESAMPLES = 9999


def score_cases(values: pd.DataFrame) -> pd.DataFrame:
    """One value of each case: the mean over the same classes for all methods.

    A class that is NaN for one method alone has two empty masks there, which agree: it counts with
    the best value, or the methods that find something in the empty reference would not be charged
    for it. A class that no method has a value of is left out. Of signed metrics, the size counts.

    Args:
        values: A row for each method, case and class (index levels of these names; others do not
            matter), a column for each metric.

    Returns:
        A row for each metric and case (sorted), a column for each method; NaN where no class has a
        value.
    """
    methods, rows = values.index.unique("method"), values.reset_index()
    scores = {}
    for metric in values:
        classes = rows.pivot(index=["case", "method"], columns="class", values=metric)
        undefined = classes.isna().groupby(level="case")
        # This one is not defined without a reference, whatever the prediction.
        left_out = undefined.transform("any" if metric == "relative_volume_error" else "all")
        best = 1.0 if METRICS[metric].higher_is_better else 0.0
        if METRICS[metric].higher_is_better is None:
            classes = classes.abs()
        means = classes.fillna(best).mask(left_out).mean(axis="columns")
        scores[metric] = means.unstack("method")[methods]
    return pd.concat(scores, names=["metric"])


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation (n - 1), median and number of the values that are not NaN.

    Args:
        scores: As of `score_cases`.

    Returns:
        A row for each metric and method, columns `mean`, `sd`, `median`, `cases`.
    """
    names = {"mean": "mean", "std": "sd", "median": "median", "count": "cases"}
    metrics = scores.groupby(level="metric", sort=False)
    found = {metric: its_scores.agg([*names]).T for metric, its_scores in metrics}
    table = pd.concat(found, names=["metric", "method"])
    return table.rename(columns=names).astype({"cases": int})


def compare(scores: Mapping[Any, pd.DataFrame], primary: str) -> pd.DataFrame:
    """Compare pairs of methods.

    The first pair's difference in the primary metric is the primary comparison: one test, which
    needs no correction. All the others are exploratory, and corrected among themselves.

    Args:
        scores: As of `score_cases`, by pair (method, control), of that pair alone.
        primary: Name of the primary metric.

    Returns:
        A row for each metric and pair (index levels `metric`, `method`, `control`), with the
        columns `verdict` (see `judge`), `is_primary`, `mean` (of the differences, method minus
        control), `low` and `high` (see `bootstrap_interval`), `p` (see `wilcoxon_p`), `p_corrected`
        (by Holm over the exploratory rows), and `wins`, `ties` and `losses` (cases in which the
        method is better than the control, equal up to `TIE`, or worse).
    """
    rows = [
        {"metric": metric, "method": pair[0], "control": pair[1], **_compare_cases(metric, values)}
        for pair, its_scores in scores.items()
        for metric, values in its_scores.groupby(level="metric", sort=False)
    ]
    found = pd.DataFrame(rows).set_index(["metric", "method", "control"])
    is_primary = [key == (primary, *next(iter(scores))) for key in found.index]
    corrected = holm(found["p"].mask(is_primary))
    found.insert(4, "p_corrected", corrected.mask(is_primary, found["p"]))
    verdicts = [
        judge(
            (row.low, row.high), row.p_corrected, row.rank_sums,
            higher_is_better=bool(METRICS[row.Index[0]].higher_is_better),
        )
        for row in found.itertuples()
    ]  # fmt: skip
    found.insert(0, "verdict", verdicts)
    found.insert(1, "is_primary", is_primary)
    return found.drop(columns="rank_sums")


def _compare_cases(metric: str, scores: pd.DataFrame) -> dict[str, Any]:
    """Row of `compare` without what depends on other rows; columns method and control."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    method, control = (scores[column] for column in scores)
    differences = subtract(control, method)
    low, high = bootstrap_interval(differences)
    return {
        "mean": np.mean(differences) if len(differences) else math.nan,
        "low": low,
        "high": high,
        "p": wilcoxon_p(differences),
        "wins": int((sign * differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((sign * differences < 0).sum()),
        "rank_sums": subtract_rank_sums(differences),
    }


def subtract(control: pd.Series, method: pd.Series) -> NDArray[Any]:
    """Method minus control in each case that has a value of both; ties are exactly 0."""
    differences = (method - control).dropna().to_numpy()
    return np.where(np.abs(differences) <= TIE, 0.0, differences)


def bootstrap_interval(differences: NDArray[Any]) -> tuple[float, float]:
    """95 % interval of the mean: bias-corrected and accelerated bootstrap over the cases, seeded.

    It says how much the mean varies with the cases, not with another training of the methods.

    Returns:
        Low and high; the value itself where all differences are equal, NaN below two cases.
    """
    if len(differences) < 2:
        return math.nan, math.nan
    if np.ptp(differences) <= TIE:  # every resample is the same, and the acceleration 0 / 0
        return float(differences.mean()), float(differences.mean())
    found = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=1000,
        confidence_level=0.95,
        method="BCa",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def wilcoxon_p(differences: NDArray[Any]) -> float:
    """Two-sided p value of the Wilcoxon signed-rank test.

    Cases without a difference are left out, as Wilcoxon did. The test is exact where scipy can: for
    up to 50 cases whose differences have no equal sizes, up to 13 with some.

    Returns:
        1 where no case has a difference; NaN without a case.
    """
    if len(differences) == 0:
        return math.nan
    nonzero = differences[differences != 0]
    return float(stats.wilcoxon(nonzero).pvalue) if len(nonzero) else 1.0


def subtract_rank_sums(differences: NDArray[Any]) -> float:
    """Rank sum of the positive differences minus that of the negative ones, as in Wilcoxon's test.

    It is above 0 where the test speaks for positive differences; 0 without any difference.
    """
    nonzero = differences[differences != 0]
    return float((np.sign(nonzero) * stats.rankdata(np.abs(nonzero))).sum())


def holm(p_values: pd.Series) -> pd.Series:
    """Holm's step-down correction of p values for their number; NaN stays NaN and does not count.

    Returns:
        Adjusted p values, which are held against the level of a single test, in the same order.
    """
    tested = p_values.dropna().sort_values()
    factors = np.arange(len(tested), 0, -1)
    return (tested * factors).clip(upper=1).cummax().reindex(p_values.index)


def judge(
    interval: tuple[float, float], p_corrected: float, rank_sums: float, *, higher_is_better: bool
) -> Literal["better", "worse", "not shown"]:
    """Verdict on a method: a difference is shown where test and interval agree on its direction.

    They disagree where many small losses meet a few large wins: the test sees the losses, the
    interval of the mean the wins.

    Args:
        interval: 95 % interval of the mean difference, method minus control.
        p_corrected: After the correction, if it is one of several tests.
        rank_sums: Direction of the test, see `subtract_rank_sums`.
        higher_is_better: Of the metric.
    """
    low, high = interval
    if p_corrected < LEVEL and ((low > 0 and rank_sums > 0) or (high < 0 and rank_sums < 0)):
        return "better" if (low > 0) == higher_is_better else "worse"
    return NOT_SHOWN
