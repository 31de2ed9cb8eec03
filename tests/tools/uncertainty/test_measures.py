from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy as entropy_of_scipy

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.tools.uncertainty.measures import (
    Maps,
    area_under_risk_coverage,
    describe,
    expected_calibration_error,
    predictive_entropy,
    rank,
    score_case,
    vote_variance,
)

CLASSES = Labels(2)
REGIONS = Labels(2, regions=((1, 2), (2,)))


def test_entropy_is_0_where_one_class_is_certain_and_ln_of_their_number_where_all_are_equal():
    # Columns: certain; two equal; three equal.
    probabilities = np.array([[1, 0.5, 1 / 3], [0, 0.5, 1 / 3], [0, 0, 1 / 3]])
    expected = [0, math.log(2), math.log(3)]
    assert predictive_entropy(probabilities).tolist() == pytest.approx(expected)


def test_entropy_is_scipys():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (3, 5)).transpose(2, 0, 1)
    assert np.allclose(predictive_entropy(probabilities), entropy_of_scipy(probabilities, axis=0))


def test_entropy_of_regions_is_the_sum_of_their_binary_entropies():
    # ln 2 of the first, -(0.25 ln 0.25 + 0.75 ln 0.75) = 0.562335 of the second; then two certain.
    probabilities = np.array([[0.5, 1.0], [0.25, 0.0]])
    expected = [math.log(2) + 0.562335, 0]
    assert predictive_entropy(probabilities, has_regions=True).tolist() == pytest.approx(expected)


def test_variance_of_a_binary_vote_is_p_times_one_minus_p():
    assert vote_variance(np.array([[0.75, 1.0], [0.25, 0.0]])).tolist() == [3 / 16, 0]


def test_variance_of_regions_is_the_sum_of_their_binary_variances():
    # 1/4 * 3/4 + 1/2 * 1/2
    assert vote_variance(np.array([[0.25], [0.5]]), has_regions=True).tolist() == [7 / 16]


def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_voxels():
    # Two bins. (0, 0.5]: 0.3 and 0.5, one correct: |0.4 - 0.5| = 0.1, two voxels of five.
    # (0.5, 1]: 0.6, 0.9, 0.9, two correct: |0.8 - 2/3| = 2/15, three of five.
    confidence = np.array([0.3, 0.5, 0.6, 0.9, 0.9])
    is_correct = np.array([True, False, False, True, True])
    expected = 2 / 5 * 0.1 + 3 / 5 * 2 / 15
    assert expected_calibration_error(confidence, is_correct, 2) == pytest.approx(expected)


def test_certain_and_correct_voxels_are_calibrated():
    assert expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_certain_and_wrong_voxels_are_not():
    assert expected_calibration_error(np.ones(4), np.zeros(4, bool)) == 1


def test_a_confidence_of_0_is_in_the_first_bin():
    assert expected_calibration_error(np.zeros(2), np.array([True, False])) == 0.5


def test_calibration_error_is_monais():
    calibration = pytest.importorskip("monai.metrics.calibration")  # since MONAI 1.6
    import torch

    rng = np.random.default_rng(0)
    confidence = rng.random(1000)
    is_correct = rng.random(1000) < confidence**2
    metric = calibration.CalibrationErrorMetric(num_bins=15)
    metric(torch.from_numpy(confidence)[None, None], torch.from_numpy(is_correct)[None, None])
    expected = metric.aggregate().item()
    assert expected_calibration_error(confidence, is_correct) == pytest.approx(expected, abs=1e-6)


def test_without_voxels_there_is_no_error_and_no_area():
    nothing = np.zeros(0)
    assert math.isnan(expected_calibration_error(nothing, nothing.astype(bool)))
    assert math.isnan(area_under_risk_coverage(nothing, nothing))


def test_area_is_the_mean_of_the_risks_of_what_has_entered():
    # Ordered by uncertainty the risks are 0, 1, 0, 1; of what has entered: 0, 1/2, 1/3, 1/2.
    uncertainty, risk = np.array([0.9, 0.1, 0.2, 0.5]), np.array([1, 0, 1, 0])
    assert area_under_risk_coverage(uncertainty, risk) == pytest.approx(
        (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4
    )


def test_items_of_equal_uncertainty_enter_together():
    # One certain item of risk 0, then three together: at their end the risk is 2/4, for all three.
    uncertainty, risk = np.array([0.5, 0.1, 0.5, 0.5]), np.array([1, 0, 1, 0])
    expected = (0 + 3 * 2 / 4) / 4
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        area = area_under_risk_coverage(uncertainty[order], risk[order])
        assert area == pytest.approx(expected)


def test_where_all_are_equally_uncertain_the_area_is_the_mean_risk():
    assert area_under_risk_coverage(np.ones(4), np.array([1, 0, 1, 0])) == 0.5


def test_a_random_order_has_the_mean_risk_on_average():
    rng = np.random.default_rng(0)
    risk = np.array([1.0, 0, 0, 0.6])
    areas = [area_under_risk_coverage(rng.random(4), risk) for _ in range(4000)]
    assert np.mean(areas) == pytest.approx(risk.mean(), abs=0.01)


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
    assert scores["dice"] == pytest.approx(2 / 3)  # one common voxel of 2 + 1
    # Each has a bin of its own of the 15: 0.1, 0.6, 0.2, 0.3 away from being right.
    assert scores["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert scores["ece_foreground"] == pytest.approx((0.6 + 0.2) / 2)
    assert scores["aurc"] == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)  # the wrong one enters last
    assert scores["aurc_random"] == pytest.approx(1 / 4)


def test_ignored_voxels_count_nowhere():
    labels = Labels(2, ignore_label=2)
    maps = maps_of([0.1, 0.6, 0.8, 0.3])
    with_ignored = score_case(maps, volume(0, 1, 1, 0), volume(0, 2, 1, 0), labels)
    without = score_case(maps_of([0.1, 0.8, 0.3]), volume(0, 1, 0), volume(0, 1, 0), CLASSES)
    errors = ("dice", "ece", "ece_foreground", "aurc", "aurc_random")
    assert [with_ignored[e] for e in errors] == pytest.approx([without[e] for e in errors])
    assert with_ignored["num_segmented"] == 2
    assert with_ignored["dice"] == 1


def test_without_foreground_there_is_no_foreground_error():
    scores = score_case(maps_of([0.1, 0.2]), volume(0, 0), volume(0, 0), CLASSES)
    assert math.isnan(scores["ece_foreground"])
    assert scores["dice"] == 1


def test_a_case_that_is_ignored_as_a_whole_has_no_scores():
    labels = Labels(2, ignore_label=2)
    scores = score_case(maps_of([0.1, 0.2]), volume(0, 1), volume(2, 2), labels)
    assert scores.keys() == {"mean_entropy", "mean_variance", "num_segmented"}
    assert scores["num_segmented"] == 1


def test_regions_are_scored_by_hand():
    # Voxels: label 1 (whole alone), 2 (both), nothing; the truth has the small region nowhere.
    # Confidence of the delivered value, whole: 0.9, 0.8, 0.8; small: 0.6, 0.7 (wrong), 0.9.
    maps = maps_of([[0.9, 0.8, 0.2], [0.4, 0.7, 0.1]], has_regions=True)
    scores = score_case(maps, volume(1, 2, 0), volume(1, 1, 0), REGIONS)
    # whole: 0.1, then 0.8 twice in one bin: 0.2 each. small: 0.4, 0.7, 0.1.
    whole, small = (0.1 + 0.2 + 0.2) / 3, (0.4 + 0.7 + 0.1) / 3
    assert scores["ece"] == pytest.approx((whole + small) / 2)
    assert scores["ece_foreground"] == pytest.approx(((0.1 + 0.2) / 2 + 0.7) / 2)
    assert scores["aurc_random"] == pytest.approx(1 / 3)


def test_means_are_over_the_segmented_foreground():
    maps = maps_of([0.1, 0.6, 0.8])
    scores = score_case(maps, volume(0, 1, 1), None, CLASSES)
    expected = maps.entropy[0, 0, 1:].mean()
    assert [*scores.values()] == pytest.approx([expected, 2 * expected, 2])  # no errors


def test_where_nothing_is_segmented_the_means_are_over_the_whole_image():
    maps = maps_of([0.1, 0.3])
    scores = score_case(maps, volume(0, 0), None, CLASSES)
    expected = maps.entropy.mean()
    assert [*scores.values()] == pytest.approx([expected, 2 * expected, 0])


def ranked(**cases):
    """Ranked table of cases from mean entropy, voxels segmented and Dice."""
    columns = ["mean_entropy", "num_segmented", "dice"]
    return rank(pd.DataFrame.from_dict(cases, orient="index", columns=columns))


def test_cases_are_ranked_by_their_mean_entropy():
    table = ranked(a=(0.1, 9, 0.9), b=(0.2, 9, 0.5), c=(0.3, 9, 0.7))
    assert table.index.tolist() == ["c", "b", "a"]
    assert table["dice"].tolist() == [0.7, 0.5, 0.9]
    # By entropy the risks are 0.1, 0.5, 0.3; of what has entered: 0.1, 0.3, 0.3. Their mean is 0.3.
    assert "risk = 1 - Dice: 0.2333 (random order: 0.3000)" in describe(table)


def test_where_nothing_is_segmented_a_case_is_the_most_uncertain_one():
    table = ranked(a=(0.1, 9, 0.9), b=(0.01, 0, 0.0), c=(0.3, 9, 0.7), d=(0.02, 0, 1.0))
    assert table.index.tolist() == ["b", "d", "c", "a"]
    # The risks are 0.1, 0.3 and, together, 1 and 0; of what has entered: 0.1, 0.2, 0.35, 0.35.
    assert "risk = 1 - Dice: 0.2500" in describe(table)


def test_a_case_without_dice_has_no_place_in_the_order():
    table = ranked(ignored=(0.2, 9, math.nan), a=(0.1, 9, 0.9))
    assert table.index.tolist() == ["ignored", "a"]
    assert "risk = 1 - Dice: 0.1000 (random order: 0.1000)" in describe(table)


def test_the_most_uncertain_cases_and_the_mean_of_all_are_printed():
    table = ranked(**{f"case_{n}": (0.1 * n, 1000 + n, 0.5) for n in range(1, 8)})
    lines = describe(table.drop(columns="dice")).splitlines()
    names = [line.split()[0] for line in lines[2:]]
    assert names == ["case_7", "case_6", "case_5", "case_4", "case_3", "mean"]
    assert lines[2].split() == ["case_7", "0.7000", "1007"]
    assert lines[-1].split() == ["mean", "of", "7", "0.4000", "1004"]
