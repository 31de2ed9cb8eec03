from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from nnunetv2_mapo.tools.compare.comparison import (
    Direction,
    bootstrap_interval,
    check_cases,
    compare,
    holm,
    judge,
    subtract,
    subtract_rank_sums,
    summarize_values,
    wilcoxon_p,
)

DICE = Direction("Dice", "Dice", higher_is_better=True)
ASD = Direction("ASD", "ASD [mm]", higher_is_better=False)
NAN = math.nan


def name_cases(values: list[float]) -> dict[str, float]:
    return {f"case_{number:03d}": value for number, value in enumerate(values)}


def test_summary_by_hand_leaves_nan_out():
    # Mean of 1, 2, 6 is 3; squares of the deviations 4 + 1 + 9 = 14, over n - 1 = 2 is 7.
    summary = summarize_values(name_cases([1, 2, NAN, 6]))
    assert (summary.mean, summary.median) == (3, 2)
    assert summary.sd == pytest.approx(math.sqrt(7))
    assert (summary.num_cases, summary.num_undefined) == (3, 1)


def test_one_case_has_no_standard_deviation_and_no_case_no_mean():
    assert math.isnan(summarize_values({"a": 1.0}).sd)
    summary = summarize_values({"a": NAN})
    assert math.isnan(summary.mean)
    assert (summary.num_cases, summary.num_undefined) == (0, 1)


def test_a_case_that_either_lacks_is_left_out_and_rounding_errors_are_ties():
    baseline = {"a": 0.1 + 0.2, "b": NAN, "c": 0.5, "d": 1.0}
    assert subtract(baseline, {"a": 0.3, "b": 1.0, "c": NAN, "d": 0.5}) == {"a": 0.0, "d": -0.5}


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
    assert wilcoxon_p(differences) == pytest.approx(enumerate_wilcoxon(differences))


def test_wilcoxon_leaves_out_cases_without_a_difference():
    assert wilcoxon_p([0.0, 1.0, 2.0, 0.0, -3.0]) == wilcoxon_p([1.0, 2.0, -3.0])


def test_wilcoxon_of_equal_methods_is_1_and_of_no_case_nan():
    assert wilcoxon_p([0.0] * 8) == 1
    assert math.isnan(wilcoxon_p([]))


def test_interval_of_two_cases_reaches_from_one_to_the_other():
    # A resample's mean is 0 or 1 in a quarter of the cases each, more than 2.5 %.
    assert bootstrap_interval([0.0, 1.0]) == (0, 1)


def test_interval_of_many_cases_is_the_one_of_the_normal_distribution():
    differences = np.random.default_rng(1).normal(0.3, 1, 400)
    half = 1.96 * differences.std(ddof=1) / math.sqrt(400)
    low, high = bootstrap_interval(differences.tolist())
    assert low == pytest.approx(differences.mean() - half, abs=0.01)
    assert high == pytest.approx(differences.mean() + half, abs=0.01)
    assert bootstrap_interval(differences.tolist()) == (low, high)  # seeded


def test_interval_of_equal_differences_is_their_value_and_of_one_case_nan():
    assert bootstrap_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
    assert all(math.isnan(end) for end in bootstrap_interval([0.25]))


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04 -> never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_does_not_count_tests_that_were_not_made():
    adjusted = holm([0.02, NAN, 0.01])
    assert adjusted[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize(
    ("interval", "p", "rank_sums", "higher_is_better", "verdict"),
    [
        ((0.1, 0.2), 0.01, 9, True, "better"),
        ((0.1, 0.2), 0.01, 9, False, "worse"),
        ((-0.2, -0.1), 0.01, -9, True, "worse"),
        ((-0.2, -0.1), 0.01, -9, False, "better"),
        ((0.1, 0.2), 0.01, -9, True, "no difference shown"),
        ((-0.2, -0.1), 0.01, 9, False, "no difference shown"),
        ((-0.1, 0.2), 0.01, 9, True, "no difference shown"),
        ((0.1, 0.2), 0.05, 9, True, "no difference shown"),
        ((NAN, NAN), 0.01, 9, True, "no difference shown"),
        ((0.1, 0.2), NAN, 9, True, "no difference shown"),
    ],
)
def test_a_difference_is_shown_where_test_and_interval_say_so(
    interval, p, rank_sums, higher_is_better, verdict
):
    assert judge(interval, p, rank_sums, higher_is_better=higher_is_better) == verdict


def test_rank_sums_by_hand():
    # Sizes 1, 2, 2, 5 have the ranks 1, 2.5, 2.5, 4: 2.5 + 4 - 1 - 2.5.
    assert subtract_rank_sums([2.0, -1.0, 0.0, -2.0, 5.0]) == 3
    assert subtract_rank_sums([0.0]) == subtract_rank_sums([]) == 0


def test_many_small_losses_and_a_few_large_wins_are_no_difference():
    # Ranks 1 to 60 are losses, 61 to 75 wins: 1830 against 1020, z = -405 / 189.4 = -2.14. The
    # mean is about (15 * 0.3 - 60 * 0.003) / 75 = 0.058.
    losses = [-0.0001 * number for number in range(1, 61)]
    wins = [0.3 + 0.001 * number for number in range(15)]
    dice = name_cases([0.5] * 75)
    changed = name_cases([0.5 + change for change in losses + wins])
    [found] = compare({"A": {"Dice": dice}, "B": {"Dice": changed}}, [DICE])
    difference = found.differences["B"]
    assert difference.p_adjusted == pytest.approx(0.032, abs=1e-3)
    assert difference.interval[0] > 0
    assert difference.verdict == "no difference shown"


def test_comparison_of_three_methods_by_hand():
    # Dice rises by 0.01 ... 0.08 with B and is equal with C; ASD falls by 1 in all but one case.
    steps = [0.01 * (number + 1) for number in range(8)]
    dice, asd = name_cases([0.5] * 8), name_cases([3.0] * 8)
    better = {case: value + step for (case, value), step in zip(dice.items(), steps, strict=True)}
    shorter = {**{case: value - 1 for case, value in asd.items()}, "case_007": 3.5}
    values = {
        "A": {"Dice": dice, "ASD": asd},
        "B": {"Dice": better, "ASD": shorter},
        "C": {"Dice": dice, "ASD": {**asd, "case_000": NAN}},
    }
    found, distances = compare(values, [DICE, ASD])
    gain = found.differences["B"]
    assert gain.mean == pytest.approx(0.045)
    assert gain.cases["case_007"] == pytest.approx(0.08)
    assert (gain.num_wins, gain.num_ties, gain.num_losses) == (8, 0, 0)
    assert gain.p == pytest.approx(2 / 2**8)
    assert gain.p_adjusted == pytest.approx(4 * 2 / 2**8)  # the smallest of four tests
    assert gain.verdict == "better"
    equal = found.differences["C"]
    assert (equal.num_wins, equal.num_ties, equal.num_losses) == (0, 8, 0)
    assert (equal.mean, equal.interval, equal.p, equal.p_adjusted) == (0, (0, 0), 1, 1)
    assert equal.verdict == "no difference shown"
    change = distances.differences["B"]
    assert (change.num_wins, change.num_ties, change.num_losses) == (7, 0, 1)  # lower is better
    assert change.mean == pytest.approx((-7 + 0.5) / 8)
    assert distances.differences["C"].num_undefined == 1
    assert distances.summaries["C"].num_cases == 7


def test_methods_with_other_cases_are_refused_with_the_list():
    with pytest.raises(ValueError, match="A lacks case_9; B lacks case_1, case_2"):
        check_cases({"A": {"case_1": 0, "case_2": 0}, "B": {"case_9": 0}})
    with pytest.raises(ValueError, match="no case to compare"):
        check_cases({"A": {}, "B": {}})


def test_one_method_alone_is_refused():
    with pytest.raises(ValueError, match="needs two methods"):
        compare({"A": {"Dice": {"a": 1.0}}}, [DICE])


def test_a_metric_that_no_case_has_is_compared_without_a_verdict():
    nothing = {"a": NAN, "b": NAN}
    values = {"A": {"ASD": nothing}, "B": {"ASD": nothing}}
    [found] = compare(values, [ASD])
    difference = found.differences["B"]
    assert (difference.cases, difference.num_undefined) == ({}, 2)
    assert all(math.isnan(value) for value in (difference.mean, difference.p))
    assert difference.verdict == "no difference shown"
