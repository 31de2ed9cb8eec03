from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import make_miner
from nnunetv2_mapo.method.rates import (
    LARGEST_RATE,
    bisect_rate,
    find_rates,
    spread_rates,
    with_rates,
)
from nnunetv2_mapo.method.sampling import DropoutSampler


class Plan:
    patch_size, batch_size, spacing = (8, 8, 8), 2, (1.0, 1.0, 1.0)


@pytest.fixture
def miner(make_network):
    network = make_network(3, num_heads=2)
    sampler = DropoutSampler((0.0, 0.1, 0.2), StochasticDropout(network, 2))
    return make_miner(MAPOConfig(), network, sampler, Labels(2), Plan(), torch.device("cpu"))


def test_bisection_finds_the_rate_at_which_a_line_reaches_the_limit():
    # the fall at rate r is 2 r: it reaches 0.3 at 0.15
    assert bisect_rate(lambda rate: 2 * rate, 0.3) == pytest.approx(0.15, abs=0.5 / 2**6)
    assert bisect_rate(lambda rate: 2 * rate, 0.3) <= 0.15


def test_what_never_falls_gets_the_largest_rate_and_what_falls_at_once_the_smallest():
    assert bisect_rate(lambda _: 0.0, 0.1) == LARGEST_RATE
    assert bisect_rate(lambda _: 1.0, 0.1) == pytest.approx(0.5 / 2**6)


def test_rates_are_spread_evenly_from_0():
    assert spread_rates(0.3, 4) == (0.0, 0.1, 0.2, 0.3)


def cases(number):
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(number, 1, 8, 8, 8, generator=rng)
    return {f"case_{n}": image for n, image in enumerate(images)}


def find(miner, images, labels_of, messages=None, dice_fall=0.1):
    config = replace(miner.config, rates_dice_fall=dice_fall)
    miner = replace(miner, finder=replace(miner.finder, config=config))
    return find_rates(
        miner, lambda case: (images[case], labels_of(case)), list(images), 1,
        (messages if messages is not None else []).append,
    )  # fmt: skip


def plain_prediction(miner, images):
    def truth(case):
        return with_rates(miner, (0.0,)).find_candidates(images[case])[:1].astype(np.int16)

    return truth


def test_the_largest_rate_is_one_that_the_median_dice_stands(miner):
    images, messages = cases(5), []
    truth = plain_prediction(miner, images)
    rates = find(miner, images, truth, messages)
    assert rates[0] == 0
    assert len(rates) == 3
    assert 0 < rates[-1] < LARGEST_RATE
    assert find(miner, images, truth) == rates  # the same noise each time
    assert find(miner, images, truth, dice_fall=0.3)[-1] > rates[-1]
    assert f"up to {rates[-1]:.3g}" in messages[0]
    assert "median Dice 1.0000 of 5 cases" in messages[0]


def test_no_more_cases_than_a_handful_are_looked_at(miner):
    images, seen = cases(30), set()

    def truth(case):
        seen.add(case)
        return np.ones((1, 8, 8, 8), np.int16)

    find(miner, images, truth)
    assert len(seen) == 8


def test_cases_without_foreground_do_not_count(miner):
    images = cases(2)
    truth = plain_prediction(miner, images)
    rates = find(miner, images, lambda case: truth(case) * (case == "case_1"))
    assert rates == find(miner, {"case_1": images["case_1"]}, truth)


def test_a_network_without_any_dice_says_nothing_about_rates(miner):
    images, messages = cases(2), []
    wrong = lambda case: 1 - plain_prediction(miner, images)(case)  # noqa: E731
    assert find(miner, images, wrong, messages) == (0.0, 0.1, 0.2)  # those of training
    assert "rates of training" in messages[0]
