from __future__ import annotations

import math

import numpy as np
import pytest

from nnunetv2_mapo.tools.uncertainty.calibration import (
    area_under_risk_coverage,
    expected_calibration_error,
)


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
