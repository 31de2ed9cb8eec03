from __future__ import annotations

import dataclasses
import math

import pytest

from nnunetv2_mapo.tools.compare.comparison import Difference, Direction, Verdict
from nnunetv2_mapo.tools.compare.comparison_text import (
    Table,
    explain_num_cases,
    explain_verdict,
    format_markdown_table,
    name_verdict,
)

DICE = Direction("Dice", "Dice", higher_is_better=True)
GAIN = Difference(
    cases={str(number): 0.1 for number in range(30)},
    num_undefined=0,
    mean=0.1,
    interval=(0.05, 0.15),
    p=0.01,
    p_adjusted=0.02,
    num_wins=30,
    num_ties=0,
    num_losses=0,
    verdict="better",
)


def test_verdict_has_the_interval_and_the_number_of_cases():
    assert explain_verdict("B", "A", DICE, GAIN, 1) == (
        "Dice: B is better than A; mean difference +0.1000, 95 % interval +0.0500 to +0.1500, "
        "corrected p = 0.02, 30 cases."
    )


def test_verdict_of_few_cases_is_a_hint():
    few = dataclasses.replace(GAIN, cases={str(number): 0.1 for number in range(12)}, num_wins=12)
    sentence = explain_verdict("B", "A", DICE, few, 1)
    assert sentence.startswith("Dice: a hint that B is better than A;")
    assert name_verdict(few, 1) == "hint: better"
    assert name_verdict(GAIN, 1) == "better"


def test_verdict_says_where_ties_leave_too_few_cases():
    # 2 / 2**5 = 0.0625 is above 0.05; 2 / 2**6 = 0.031 is below it, but not twice that.
    same: Verdict = "no difference shown"
    five = dataclasses.replace(GAIN, num_wins=4, num_losses=1, num_ties=25, verdict=same)
    six = dataclasses.replace(five, num_wins=5, num_ties=24)
    assert name_verdict(five, 1) == "no difference shown (only 5 of 30 cases differ)"
    assert explain_verdict("B", "A", DICE, five, 1).endswith("30 cases, only 5 of 30 cases differ.")
    assert name_verdict(six, 1) == "no difference shown"
    assert name_verdict(six, 2) == "no difference shown (only 6 of 30 cases differ)"


def test_verdict_without_a_difference_says_no_more_than_that():
    same = dataclasses.replace(GAIN, verdict="no difference shown")
    assert explain_verdict("B", "A", DICE, same, 1).startswith(
        "Dice: no difference between B and A shown; mean difference +0.1000"
    )


def test_verdict_without_cases_says_so():
    nothing = dataclasses.replace(GAIN, cases={}, mean=math.nan)
    assert explain_verdict("B", "A", DICE, nothing, 1) == (
        "Dice: no case has a value of both B and A."
    )


@pytest.mark.parametrize(
    ("num_cases", "num_tests", "expected"),
    [
        (1, 1, "with 1 case, the smallest p that a test can give is 1,"),
        (5, 1, "with 5 cases, the smallest p that a test can give is 0.062,"),  # 2 / 2**5
        # 2 / 2**6 = 0.031 would do for one test; twice that is 0.0625.
        (6, 2, "the smallest p that a test that is corrected for 2 can give is 0.062,"),
        (6, 1, "6 cases: too few to conclude, read the result as a hint."),
        (19, 7, "19 cases: too few to conclude, read the result as a hint."),
        (20, 7, "20 cases: enough for the test"),
    ],
)
def test_number_of_cases_decides_what_can_be_concluded(num_cases, num_tests, expected):
    text = explain_num_cases(num_cases, num_cases, num_tests)
    assert expected in text
    assert text.startswith("Too few cases to") == ("smallest p" in expected)


@pytest.mark.parametrize(
    ("num_differing", "expected"),
    [
        (4, "Too few cases differ to conclude anything: with 30 cases, of which 4 differ, the"),
        (19, "30 cases, of which 19 differ: too few to conclude, read the result as a hint."),
        (20, "30 cases, of which 20 differ: enough for the test"),
    ],
)
def test_ties_conclude_nothing(num_differing, expected):
    assert explain_num_cases(30, num_differing, 1).startswith(expected)


def test_markdown_table_is_padded_and_escapes_the_column_sign():
    table = format_markdown_table(Table(["case", "Dice"], [["a|b", "0.5"], ["c", "0.75"]]))
    assert table.splitlines() == [
        "| case | Dice |",
        "| ---- | ---: |",
        "| a\\|b |  0.5 |",
        "| c    | 0.75 |",
    ]
