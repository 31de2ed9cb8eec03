from __future__ import annotations

from nnunetv2_mapo.method.examples import choose_samples
from nnunetv2_mapo.method.store import SampleRecord


def record(gap: float) -> SampleRecord:
    return SampleRecord([0.5, 0.5 - gap], 0, 1, 3, 10)


NO_PAIR = SampleRecord([0.5, 0.49], 0, None, 0, 10)


def test_largest_median_and_smallest_gap_of_different_cases_are_chosen():
    cases = {
        "a": [record(0.2), NO_PAIR],
        "b": [record(0.3), record(0.4), record(0.35)],
        "c": [record(0.1)],
        "d": [NO_PAIR],
    }
    chosen = choose_samples(cases)
    assert [(s.identifier, s.number) for s in chosen] == [("b", 1), ("a", 0), ("c", 0)]
    assert [round(sample.gap, 6) for sample in chosen] == [0.4, 0.2, 0.1]


def test_of_two_cases_both_are_chosen_and_of_one_it_alone():
    cases = {"a": [record(0.2)], "b": [NO_PAIR, record(0.4)]}
    assert [(s.identifier, s.number) for s in choose_samples(cases)] == [("b", 1), ("a", 0)]
    del cases["b"]
    assert [s.identifier for s in choose_samples(cases)] == ["a"]


def test_without_a_pair_nothing_is_chosen():
    assert choose_samples({"a": [NO_PAIR]}) == []
