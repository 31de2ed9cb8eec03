from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import entropy as entropy_of_scipy

from nnunetv2_mapo.tools.uncertainty.uncertainty import predictive_entropy, vote_variance


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
