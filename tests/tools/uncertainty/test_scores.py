from __future__ import annotations

import math

import numpy as np
import pytest

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.tools.uncertainty.maps import Maps
from nnunetv2_mapo.tools.uncertainty.scores import Scores, area_of_order, rank, score_case
from nnunetv2_mapo.tools.uncertainty.uncertainty import predictive_entropy

CLASSES = Labels(2)
REGIONS = Labels(2, regions=((1, 2), (2,)))


def maps_of(foreground, has_regions=False):
    """Maps of 1 x 1 x n voxels from the probability of the only foreground class, or of regions."""
    rows = np.array(foreground, dtype=np.float32)
    probabilities = rows if has_regions else np.stack([1 - rows, rows])
    probabilities = probabilities[:, None, None]
    entropy = predictive_entropy(probabilities, has_regions=has_regions)
    return Maps(probabilities, entropy, 2 * entropy)


def volume(*labels):
    return np.array([[labels]], np.int16)


def test_a_case_is_scored_by_hand():
    # Confidence of the delivered class: 0.9, 0.6, 0.8, 0.7; the second voxel is wrong.
    scores = score_case(
        maps_of([0.1, 0.6, 0.8, 0.3]), volume(0, 1, 1, 0), volume(0, 0, 1, 0), CLASSES
    )
    assert scores.dice == pytest.approx(2 / 3)  # one common voxel of 2 + 1
    # Each has a bin of its own of the 15: 0.1, 0.6, 0.2, 0.3 away from being right.
    assert scores.ece == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert scores.ece_foreground == pytest.approx((0.6 + 0.2) / 2)
    assert scores.aurc == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)  # the wrong one enters last
    assert scores.aurc_random == pytest.approx(1 / 4)


def test_ignored_voxels_count_nowhere():
    labels = Labels(2, ignore_label=2)
    maps = maps_of([0.1, 0.6, 0.8, 0.3])
    with_ignored = score_case(maps, volume(0, 1, 1, 0), volume(0, 2, 1, 0), labels)
    without = score_case(maps_of([0.1, 0.8, 0.3]), volume(0, 1, 0), volume(0, 1, 0), CLASSES)
    assert with_ignored[3:] == pytest.approx(without[3:])
    assert with_ignored.num_segmented == 2
    assert with_ignored.dice == 1


def test_without_foreground_there_is_no_foreground_error():
    scores = score_case(maps_of([0.1, 0.2]), volume(0, 0), volume(0, 0), CLASSES)
    assert math.isnan(scores.ece_foreground)
    assert scores.dice == 1


def test_a_case_that_is_ignored_as_a_whole_has_no_scores():
    labels = Labels(2, ignore_label=2)
    scores = score_case(maps_of([0.1, 0.2]), volume(0, 1), volume(2, 2), labels)
    assert all(math.isnan(value) for value in scores[3:])
    assert scores.num_segmented == 1


def test_regions_are_scored_by_hand():
    # Voxels: label 1 (whole alone), 2 (both), nothing; the truth has the small region nowhere.
    # Confidence of the delivered value, whole: 0.9, 0.8, 0.8; small: 0.6, 0.7 (wrong), 0.9.
    maps = maps_of([[0.9, 0.8, 0.2], [0.4, 0.7, 0.1]], has_regions=True)
    scores = score_case(maps, volume(1, 2, 0), volume(1, 1, 0), REGIONS)
    # whole: 0.1, then 0.8 twice in one bin: 0.2 each. small: 0.4, 0.7, 0.1.
    whole, small = (0.1 + 0.2 + 0.2) / 3, (0.4 + 0.7 + 0.1) / 3
    assert scores.ece == pytest.approx((whole + small) / 2)
    assert scores.ece_foreground == pytest.approx(((0.1 + 0.2) / 2 + 0.7) / 2)
    assert scores.aurc_random == pytest.approx(1 / 3)


def test_means_are_over_the_segmented_foreground():
    maps = maps_of([0.1, 0.6, 0.8])
    scores = score_case(maps, volume(0, 1, 1), None, CLASSES)
    expected = maps.entropy[0, 0, 1:].mean()
    assert scores[:3] == pytest.approx((expected, 2 * expected, 2))
    assert all(math.isnan(value) for value in scores[3:])


def test_where_nothing_is_segmented_the_means_are_over_the_whole_image():
    maps = maps_of([0.1, 0.3])
    scores = score_case(maps, volume(0, 0), None, CLASSES)
    expected = maps.entropy.mean()
    assert scores[:3] == pytest.approx((expected, 2 * expected, 0))


def scored(**cases):
    """Scores of cases from mean entropy, voxels segmented and Dice."""
    return {
        name: Scores(entropy, 0.1, number, dice) for name, (entropy, number, dice) in cases.items()
    }


def test_cases_are_ranked_by_their_mean_entropy():
    table = rank(scored(a=(0.1, 9, 0.9), b=(0.2, 9, 0.5), c=(0.3, 9, 0.7)))
    assert table.index.tolist() == ["c", "b", "a"]
    assert table["dice"].tolist() == [0.7, 0.5, 0.9]
    # By entropy the risks are 0.1, 0.5, 0.3; of what has entered: 0.1, 0.3, 0.3.
    assert area_of_order(table) == pytest.approx(0.7 / 3)


def test_where_nothing_is_segmented_a_case_is_the_most_uncertain_one():
    cases = scored(a=(0.1, 9, 0.9), b=(0.01, 0, 0.0), c=(0.3, 9, 0.7), d=(0.02, 0, 1.0))
    table = rank(cases)
    assert table.index.tolist() == ["b", "d", "c", "a"]
    # The risks are 0.1, 0.3 and, together, 1 and 0; of what has entered: 0.1, 0.2, 0.35, 0.35.
    assert area_of_order(table) == pytest.approx(1 / 4)


def test_a_case_without_dice_has_no_place_in_the_order():
    table = rank(scored(ignored=(0.2, 9, math.nan), a=(0.1, 9, 0.9)))
    assert table.index.tolist() == ["ignored", "a"]
    assert area_of_order(table) == pytest.approx(0.1)


def test_without_ground_truth_the_table_has_no_errors():
    table = rank({"a": Scores(0.4, 0.2, 9)})
    assert table.columns.tolist() == ["mean_entropy", "mean_variance", "num_segmented"]
