from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from nnunetv2_mapo.tools.compare.statistics import (
    bootstrap_interval,
    compare,
    holm,
    judge,
    subtract,
    subtract_rank_sums,
    summarize,
    wilcoxon_p,
)

NAN = math.nan


def make_scores(**metrics: dict[str, list[float]]) -> pd.DataFrame:
    """Scores of made-up cases: metric -> method -> value of each case."""
    tables = {metric: pd.DataFrame(methods) for metric, methods in metrics.items()}
    return pd.concat(tables, names=["metric", "case"])


def test_summary_by_hand_leaves_nan_out():
    # Mean of 1, 2, 6 is 3; squares of the deviations 4 + 1 + 9 = 14, over n - 1 = 2 is 7.
    [summary] = summarize(make_scores(Dice={"A": [1, 2, NAN, 6]})).itertuples()
    assert (summary.mean, summary.median, summary.cases) == (3, 2, 3)
    assert summary.sd == pytest.approx(math.sqrt(7))


def test_one_case_has_no_standard_deviation_and_no_case_no_mean():
    scores = make_scores(Dice={"A": [1.0, NAN], "B": [NAN, NAN]})
    one, none = summarize(scores).itertuples()
    assert math.isnan(one.sd)
    assert math.isnan(none.mean)
    assert (one.cases, none.cases) == (1, 0)


def test_a_case_that_either_lacks_is_left_out_and_rounding_errors_are_ties():
    baseline, method = pd.Series([0.1 + 0.2, NAN, 0.5, 1.0]), pd.Series([0.3, 1.0, NAN, 0.5])
    assert subtract(baseline, method).tolist() == [0.0, -0.5]


def enumerate_wilcoxon(differences: list[float]) -> float:
    """Two-sided p from all patterns of signs, with mean ranks for equal sizes."""
    sizes = np.abs(differences)
    ranks = [(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes]
    signs = np.array(list(itertools.product((0, 1), repeat=len(ranks))))
    sums, middle = signs @ ranks, sum(ranks) / 2
    observed = sum(rank for rank, value in zip(ranks, differences, strict=True) if value > 0)
    return float((np.abs(sums - middle) >= abs(observed - middle) - 1e-9).mean())


@pytest.mark.parametrize(
    "differences",
    [
        [0.5],
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [0.1, -0.2, 0.35, 0.4, 0.8, -0.05, 0.6],
        [-3.0, 1.0, -2.0, -4.0, -6.0],
    ],
)
def test_wilcoxon_of_few_cases_is_exact(differences):
    found = wilcoxon_p(np.array(differences))
    assert found == pytest.approx(enumerate_wilcoxon(differences))


def test_wilcoxon_leaves_out_cases_without_a_difference():
    with_ties = np.array([0.0, 1.0, 2.0, 0.0, -3.0])
    assert wilcoxon_p(with_ties) == wilcoxon_p(np.array([1.0, 2.0, -3.0]))


def test_wilcoxon_of_equal_methods_is_1_and_of_no_case_nan():
    assert wilcoxon_p(np.zeros(8)) == 1
    assert math.isnan(wilcoxon_p(np.zeros(0)))


def test_interval_of_two_cases_reaches_from_one_to_the_other():
    # A resample's mean is 0 or 1 in a quarter of the cases each, more than 2.5 %.
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0, 1)


def test_interval_of_many_cases_is_the_one_of_the_normal_distribution():
    differences = np.random.default_rng(1).normal(0.3, 1, 400)
    half = 1.96 * differences.std(ddof=1) / math.sqrt(400)
    low, high = bootstrap_interval(differences)
    assert low == pytest.approx(differences.mean() - half, abs=0.01)
    assert high == pytest.approx(differences.mean() + half, abs=0.01)
    assert bootstrap_interval(differences) == (low, high)  # seeded


def test_interval_of_equal_differences_is_their_value_and_of_one_case_nan():
    assert bootstrap_interval(np.array([0.25, 0.25, 0.25])) == (0.25, 0.25)
    assert all(math.isnan(end) for end in bootstrap_interval(np.array([0.25])))


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04 -> never falling.
    adjusted = holm(pd.Series([0.04, 0.01, 0.03, 0.02]))
    assert adjusted.tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(pd.Series([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_holm_does_not_count_tests_that_were_not_made():
    adjusted = holm(pd.Series([0.02, NAN, 0.01])).tolist()
    assert adjusted[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize(
    ("interval", "p", "rank_sums", "higher_is_better", "verdict"),
    [
        ((0.1, 0.2), 0.01, 9, True, "better"),
        ((0.1, 0.2), 0.01, 9, False, "worse"),
        ((-0.2, -0.1), 0.01, -9, True, "worse"),
        ((-0.2, -0.1), 0.01, -9, False, "better"),
        ((0.1, 0.2), 0.01, -9, True, "not shown"),
        ((-0.2, -0.1), 0.01, 9, False, "not shown"),
        ((-0.1, 0.2), 0.01, 9, True, "not shown"),
        ((0.1, 0.2), 0.05, 9, True, "not shown"),
        ((NAN, NAN), 0.01, 9, True, "not shown"),
        ((0.1, 0.2), NAN, 9, True, "not shown"),
    ],
)
def test_a_difference_is_shown_where_test_and_interval_say_so(
    interval, p, rank_sums, higher_is_better, verdict
):
    assert judge(interval, p, rank_sums, higher_is_better=higher_is_better) == verdict


def test_rank_sums_by_hand():
    # Sizes 1, 2, 2, 5 have the ranks 1, 2.5, 2.5, 4: 2.5 + 4 - 1 - 2.5.
    assert subtract_rank_sums(np.array([2.0, -1.0, 0.0, -2.0, 5.0])) == 3
    assert subtract_rank_sums(np.zeros(1)) == subtract_rank_sums(np.zeros(0)) == 0


def test_many_small_losses_and_a_few_large_wins_are_no_difference():
    # Ranks 1 to 60 are losses, 61 to 75 wins: 1830 against 1020, z = -405 / 189.4 = -2.14. The
    # mean is about (15 * 0.3 - 60 * 0.003) / 75 = 0.058.
    losses = [-0.0001 * number for number in range(1, 61)]
    wins = [0.3 + 0.001 * number for number in range(15)]
    scores = make_scores(Dice={"B": [0.5 + change for change in losses + wins], "A": [0.5] * 75})
    [difference] = compare({("B", "A"): scores}, "Dice").itertuples()
    assert difference.p_corrected == pytest.approx(0.032, abs=1e-3)
    assert difference.low > 0
    assert difference.verdict == "not shown"


def test_comparison_of_two_pairs_by_hand():
    # Dice rises by 0.01 ... 0.08 with B and is equal with C; ASD falls by 1 in all but one case.
    dice, asd = [0.5] * 8, [3.0] * 8
    better, shorter = [0.51 + 0.01 * number for number in range(8)], [2.0] * 7 + [3.5]
    scores = {
        ("B", "A"): make_scores(Dice={"B": better, "A": dice}, ASD={"B": shorter, "A": asd}),
        ("C", "A"): make_scores(Dice={"C": dice, "A": dice}, ASD={"C": [NAN, *asd[1:]], "A": asd}),
    }
    gain, change, equal, fewer = compare(scores, "Dice").itertuples()
    assert [row.Index for row in (gain, change, equal, fewer)] == [
        ("Dice", "B", "A"), ("ASD", "B", "A"), ("Dice", "C", "A"), ("ASD", "C", "A")
    ]  # fmt: skip
    assert [row.is_primary for row in (gain, change, equal, fewer)] == [True, False, False, False]
    assert gain.mean == pytest.approx(0.045)
    assert (gain.wins, gain.ties, gain.losses) == (8, 0, 0)
    assert gain.p == gain.p_corrected == pytest.approx(2 / 2**8)  # the primary one: no correction
    assert gain.verdict == "better"
    assert (equal.wins, equal.ties, equal.losses) == (0, 8, 0)
    assert (equal.mean, equal.low, equal.high, equal.p, equal.p_corrected) == (0, 0, 0, 1, 1)
    assert equal.verdict == "not shown"
    assert (change.wins, change.ties, change.losses) == (7, 0, 1)  # lower is better
    assert change.mean == pytest.approx((-7 + 0.5) / 8)
    # Ranks: the loss of 0.5 is the smallest, so of 2**8 patterns 2 at each end are as extreme.
    assert change.p == pytest.approx(4 / 2**8)
    assert change.p_corrected == pytest.approx(3 * 4 / 2**8)  # the smallest of three tests
    assert (fewer.wins, fewer.ties, fewer.losses) == (0, 7, 0)


def test_a_metric_that_no_case_has_is_compared_without_a_verdict():
    scores = make_scores(ASD={"A": [NAN, NAN], "B": [NAN, NAN]})
    [difference] = compare({("A", "B"): scores}, "Dice").itertuples()
    assert (difference.wins, difference.ties, difference.losses) == (0, 0, 0)
    assert all(math.isnan(value) for value in (difference.mean, difference.p))
    assert difference.verdict == "not shown"
