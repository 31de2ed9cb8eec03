from dataclasses import replace

import pytest

from nnunetv2_mapo.method.choices import Answer
from nnunetv2_mapo.tools.choose.agreement import Kappa, cohens_kappa, summarise

FIRST = Answer("a", "sha", "sha", (2, 0, 1), "choice", "Ada", 4.0, "now", best=0, worst=1)


def test_kappa_of_hand_computed_numbers():
    # agreed: 20 + 15 of 50; first rater yes 25, second 30; p_e = (25 * 30 + 25 * 20) / 50^2 = 0.5
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    kappa = cohens_kappa(first, second)
    assert kappa.number == 50
    assert kappa.observed == pytest.approx(0.7)
    assert kappa.kappa == pytest.approx((0.7 - 0.5) / (1 - 0.5))


def test_kappa_is_1_for_the_same_answers_and_below_0_for_opposite_ones():
    assert cohens_kappa([0, 1, 2], [0, 1, 2]).kappa == pytest.approx(1)
    # p_o = 0, p_e = 2 * 1/2 * 1/2
    assert cohens_kappa([0, 1], [1, 0]).kappa == pytest.approx(-1)


def test_kappa_is_not_defined_without_answers_or_where_all_are_the_same():
    assert cohens_kappa([], []) == Kappa(0, None, None)
    assert cohens_kappa([0, 0], [0, 0]) == Kappa(2, 1.0, None)


def test_the_summary_says_where_kappa_cannot_be_had():
    text = summarise({0: FIRST})
    assert "Ada, first and second time: not to be had: no question was answered twice" in text
    assert "between raters: not to be had, there is one rater" in text


def test_the_summary_compares_first_with_second_time_and_rater_with_rater():
    answers = [
        FIRST,
        replace(FIRST, image="b", best=1, worst=0),
        replace(FIRST, repeat=True, shown=(0, 1, 2)),  # in another order: the same question
        replace(FIRST, image="b", repeat=True, best=1, worst=0),
        replace(FIRST, rater="Bob", best=1, worst=0),
        replace(FIRST, image="b", rater="Bob", best=0, worst=1),
        replace(FIRST, image="c", rater="Bob", verdict="skip", best=None, worst=None),
    ]
    text = summarise(dict(enumerate(answers)))
    assert "Ada, first and second time: 1.00 (100% of 2 answers are the same)" in text
    assert "Bob, first and second time: not to be had" in text
    assert "Ada and Bob: -1.00 (0% of 2 answers are the same)" in text


def test_a_kappa_that_is_not_defined_is_said():
    text = summarise({0: FIRST, 1: replace(FIRST, repeat=True)})
    assert "not defined: every answer is the same one (100% of 1 answers are the same)" in text


def test_no_answer_is_said():
    assert summarise({}) == "There is no answer yet."
