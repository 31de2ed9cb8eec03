"""Lesions that are counted by hand, and an independent count by scipy alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import generate_binary_structure, label

from nnunetv2_mapo.metrics.change import Change
from nnunetv2_mapo.metrics.lesions import (
    Lesions,
    count_lesions,
    false_negative_volume_ml,
    false_positive_volume_ml,
    lesion_dice,
    lesion_f1,
    lesion_precision,
    lesion_recall,
)

two_masks = (
    st.integers(2, 3)
    .flatmap(
        lambda n: st.tuples(*[arrays(bool, (6, 7, 5)[:n], elements=st.sampled_from([0, 0, 1]))] * 2)
    )
    .filter(lambda drawn: drawn[0].any() or drawn[1].any())
)


def hand_counted():
    """Truth of three lesions of 4, 2 and 6 pixels; prediction of three.

    The first lesion is hit by 2 predicted pixels of a lesion of 3, the second is missed; the third
    is found whole by a lesion of 6 + 2. A predicted lesion of 5 pixels is false.
    """
    truth, prediction = np.zeros((2, 12, 12), bool)
    truth[0:2, 0:2] = truth[0, 5:7] = truth[6:8, 0:3] = True
    prediction[1, 0:3] = prediction[6:8, 0:4] = prediction[11, 5:10] = True
    return prediction, truth


def test_lesions_counted_by_hand():
    prediction, truth = hand_counted()
    counts = count_lesions(prediction, truth, (2.0, 3.0))
    assert sorted(counts.predicted) == [3, 5, 8]
    assert sorted(counts.target) == [2, 4, 6]
    assert lesion_f1(counts) == pytest.approx(2 / (2 + (1 + 1) / 2))
    assert lesion_precision(counts) == pytest.approx(2 / 3)
    assert lesion_recall(counts) == pytest.approx(2 / 3)
    dices = [2 * 2 / (4 + 3), 0, 2 * 6 / (6 + 8), 0]  # the last one is the false lesion
    assert lesion_dice(counts) == pytest.approx(sum(dices) / 4)
    assert false_positive_volume_ml(counts) == pytest.approx(5 * 6 / 1000)  # 1 mm thick
    assert false_negative_volume_ml(counts) == pytest.approx(2 * 6 / 1000)


def test_a_lesion_of_the_truth_is_compared_with_all_that_touch_it():
    truth, prediction = np.zeros((2, 3, 9), bool)
    truth[1, 1:8] = True
    prediction[1, 1:3] = prediction[1, 5:8] = True
    counts = count_lesions(prediction, truth, (1.0, 1.0))
    assert lesion_dice(counts) == pytest.approx(2 * 5 / (7 + 5))
    assert lesion_f1(counts) == 1  # both of the prediction touch the truth


def test_one_lesion_of_the_prediction_may_find_two():
    truth, prediction = np.zeros((2, 3, 9), bool)
    truth[1, 1:3] = truth[1, 5:8] = True
    prediction[1, 1:8] = True
    counts = count_lesions(prediction, truth, (1.0, 1.0))
    assert (lesion_f1(counts), lesion_precision(counts), lesion_recall(counts)) == (1, 1, 1)
    assert lesion_dice(counts) == pytest.approx((2 * 2 / (2 + 7) + 2 * 3 / (3 + 7)) / 2)


def test_without_a_lesion_of_the_truth_there_is_no_recall():
    prediction, truth = hand_counted()
    invented = count_lesions(prediction, np.zeros_like(truth), (1.0, 1.0))
    assert math.isnan(lesion_recall(invented))
    assert (lesion_f1(invented), lesion_precision(invented), lesion_dice(invented)) == (0, 0, 0)
    assert false_positive_volume_ml(invented) == pytest.approx(16 / 1000)
    missed = count_lesions(np.zeros_like(truth), truth, (1.0, 1.0))
    assert math.isnan(lesion_precision(missed))
    assert (lesion_f1(missed), lesion_recall(missed), lesion_dice(missed)) == (0, 0, 0)
    assert false_negative_volume_ml(missed) == pytest.approx(12 / 1000)


@settings(max_examples=150, deadline=None)
@given(drawn=two_masks)
def test_lesion_metrics_are_those_of_a_loop_over_scipys_components(drawn):
    prediction, truth = drawn
    neighbours = generate_binary_structure(truth.ndim, truth.ndim)
    (ours, num_ours), (true, num_true) = label(prediction, neighbours), label(truth, neighbours)
    false = [n for n in range(1, num_ours + 1) if not truth[ours == n].any()]
    missed = [n for n in range(1, num_true + 1) if not prediction[true == n].any()]
    dices = [0.0] * len(false)
    for number in range(1, num_true + 1):
        touching = np.isin(ours, [n for n in np.unique(ours[true == number]) if n])
        common = (touching & (true == number)).sum()
        dices.append(2 * common / (touching.sum() + (true == number).sum()))
    counts = count_lesions(prediction, truth, (1.0,) * truth.ndim)
    num_found = num_true - len(missed)
    expected = 2 * num_found / (2 * num_found + len(false) + len(missed))
    assert lesion_f1(counts) == pytest.approx(expected)
    assert lesion_dice(counts) == pytest.approx(np.mean(dices))
    assert false_positive_volume_ml(counts) == pytest.approx(np.isin(ours, false).sum() / 1000)
    assert false_negative_volume_ml(counts) == pytest.approx(np.isin(true, missed).sum() / 1000)


# With a part changed ------------------------------------------------------------------------------


def as_set(counts):
    """Lesions of the prediction, each with its voxels and those it shares with the truth."""
    shared = [
        (size, tuple(sorted(map(tuple, counts.shared[counts.shared[:, 0] == number, 1:]))))
        for number, size in enumerate(counts.predicted)
    ]
    return sorted(shared), counts.target.tolist(), counts.voxel_ml


def change_box(prediction, truth, box, value):
    changed = prediction.copy()
    changed[box] = value
    spacing = (1.0,) * truth.ndim
    found = Lesions(prediction, truth, spacing).counts_with(Change(box, changed[box].copy()))
    return as_set(found), as_set(count_lesions(changed, truth, spacing))


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        (slice(4, 6), False),  # splits the bar
        (slice(0, 3), False),  # shortens it
        (slice(1, 10), False),  # all of it vanishes
        (slice(10, 12), True),  # merges it with the other
        (slice(11, 12), True),  # makes the other longer
    ],
    ids=["split", "shrink", "vanish", "merge", "grow"],
)
def test_a_part_may_do_anything_to_a_lesion(columns, value):
    truth, prediction = np.zeros((2, 7, 20), bool)
    truth[2:5, 3:8] = truth[3, 13:15] = True
    prediction[3, 1:10] = prediction[3, 12:18] = prediction[6, 2] = True
    found, expected = change_box(prediction, truth, (slice(3, 4), columns), value)
    assert found == expected


@settings(max_examples=200, deadline=None)
@given(drawn=two_masks, data=st.data())
def test_lesions_with_any_box_changed_are_those_of_the_changed_mask(drawn, data):
    prediction, truth = drawn
    starts = [data.draw(st.integers(0, size - 1)) for size in truth.shape]
    ends = [data.draw(st.integers(s + 1, n)) for s, n in zip(starts, truth.shape, strict=True)]
    box = tuple(slice(*each) for each in zip(starts, ends, strict=True))
    value = data.draw(arrays(bool, [s.stop - s.start for s in box]))
    found, expected = change_box(prediction, truth, box, value)
    assert found == expected
