from __future__ import annotations

import math

import numpy as np
import pytest

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.tools.uncertainty.maps import Maps
from nnunetv2_mapo.tools.uncertainty.scores import judge, score_case
from nnunetv2_mapo.tools.uncertainty.uncertainty import predictive_entropy

CLASSES = Labels(2)
REGIONS = Labels(2, regions=((1, 2), (2,)))


def maps_of(foreground, has_regions=False):
    """Maps of 1 x 1 x n voxels from the probability of the only foreground class, or of regions."""
    rows = np.array(foreground, dtype=np.float32)
    probabilities = rows if has_regions else np.stack([1 - rows, rows])
    probabilities = probabilities[:, None, None]
    entropy = predictive_entropy(probabilities, has_regions=has_regions)
    return Maps(probabilities, entropy, np.zeros_like(entropy))


def volume(*labels):
    return np.array([[labels]])


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
    assert scores.aurc_best == pytest.approx(1 / 16)


def test_ignored_voxels_count_nowhere():
    labels = Labels(2, ignore_label=2)
    maps = maps_of([0.1, 0.6, 0.8, 0.3])
    with_ignored = score_case(maps, volume(0, 1, 1, 0), volume(0, 2, 1, 0), labels)
    without = score_case(maps_of([0.1, 0.8, 0.3]), volume(0, 1, 0), volume(0, 1, 0), CLASSES)
    assert with_ignored == pytest.approx(without)
    assert with_ignored.dice == 1


def test_without_foreground_there_is_no_foreground_error():
    scores = score_case(maps_of([0.1, 0.2]), volume(0, 0), volume(0, 0), CLASSES)
    assert math.isnan(scores.ece_foreground)
    assert scores.dice == 1


def test_a_case_that_is_ignored_as_a_whole_has_no_scores():
    labels = Labels(2, ignore_label=2)
    scores = score_case(maps_of([0.1, 0.2]), volume(0, 1), volume(2, 2), labels)
    assert all(math.isnan(value) for value in scores)


def test_a_region_is_judged_by_its_own_probability():
    # Voxels: whole alone (bits 1), both (bits 3), nothing; the truth has the small region nowhere.
    judged = judge(
        np.array([[0.9, 0.8, 0.2], [0.4, 0.7, 0.1]]),
        np.array([1, 3, 0]),
        np.array([1, 1, 0]),
        REGIONS,
    )
    assert np.allclose(judged.confidence, [[0.9, 0.8, 0.8], [0.6, 0.7, 0.9]])
    assert judged.is_correct.tolist() == [[True, True, True], [True, False, True]]
    assert judged.is_foreground.tolist() == [[True, True, False], [False, True, False]]


def test_regions_are_scored_by_hand():
    # Labels 1 (whole alone) and 2 (both), as in the test above.
    maps = maps_of([[0.9, 0.8, 0.2], [0.4, 0.7, 0.1]], has_regions=True)
    scores = score_case(maps, volume(1, 2, 0), volume(1, 1, 0), REGIONS)
    # whole: 0.1, then 0.8 twice in one bin: 0.2 each. small: 0.4, 0.7, 0.1.
    whole, small = (0.1 + 0.2 + 0.2) / 3, (0.4 + 0.7 + 0.1) / 3
    assert scores.ece == pytest.approx((whole + small) / 2)
    assert scores.ece_foreground == pytest.approx(((0.1 + 0.2) / 2 + 0.7) / 2)
    assert scores.aurc_random == pytest.approx(1 / 3)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 3\)"):
        score_case(maps_of([0.1, 0.2]), volume(0, 1), volume(0, 1, 1), CLASSES)
