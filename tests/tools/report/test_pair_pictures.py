from __future__ import annotations

import numpy as np

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.store import SampleRecord
from nnunetv2_mapo.tools.report.pair_pictures import choose_samples, to_classes


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
    assert {name: (s.identifier, s.number) for name, s in chosen.items()} == {
        "largest gap": ("b", 1),
        "median gap": ("a", 0),
        "smallest gap": ("c", 0),
    }
    assert [round(sample.gap, 6) for sample in chosen.values()] == [0.4, 0.2, 0.1]


def test_of_two_cases_both_are_chosen_and_of_one_it_alone():
    cases = {"a": [record(0.2)], "b": [NO_PAIR, record(0.4)]}
    chosen = choose_samples(cases)
    assert [(name, s.identifier, s.number) for name, s in chosen.items()] == [
        ("largest gap", "b", 1),
        ("smallest gap", "a", 0),
    ]
    del cases["b"]
    assert list(choose_samples(cases)) == ["largest gap"]


def test_without_a_pair_nothing_is_chosen():
    assert choose_samples({"a": [NO_PAIR]}) == {}


def test_classes_are_painted_as_they_are():
    label_map = np.array([0, 1, 3])
    assert to_classes(label_map, Labels(4)).tolist() == [0, 1, 3]


def test_of_nested_regions_the_innermost_is_painted():
    # Bit masks: none, region 0, regions 0 and 1, regions 0 to 2, region 2 alone.
    labels = Labels(3, regions=((1, 2, 3), (2, 3), (3,)))
    assert to_classes(np.array([0, 1, 3, 7, 4]), labels).tolist() == [0, 1, 2, 3, 3]
