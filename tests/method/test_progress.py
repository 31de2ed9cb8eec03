from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.image import imread
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunetv2_mapo.method.loss import STEP_KEYS
from nnunetv2_mapo.method.progress import (
    MINING_KEYS,
    plot_progress,
    register_keys,
    round_values,
    step_means,
)
from nnunetv2_mapo.method.rounds import RoundSummary
from nnunetv2_mapo.method.schedule import Stage

KEYS = (*STEP_KEYS, *MINING_KEYS)
SUMMARY = RoundSummary(
    tau=0.1,
    num_samples=5,
    num_pairs=3,
    num_parts=0,
    num_preferred=0,
    dice_plain=0.6,
    dice_chosen=0.7,
    dice_rejected=0.4,
    disagreement=0.02,
    gaps=[0.1],
)


def test_registered_keys_are_padded_with_nan_for_the_epochs_before():
    logged = {"train_losses": [1.0, 0.9]}
    register_keys(logged, 2)
    assert set(logged) == {"train_losses", *KEYS}
    for key in KEYS:
        assert len(logged[key]) == 2
        assert all(math.isnan(value) for value in logged[key])
    assert logged["train_losses"] == [1.0, 0.9]


def test_registering_again_keeps_values_and_fills_only_the_gap():
    logged = {"loss/dpo": [0.5]}
    register_keys(logged, 1)
    register_keys(logged, 3)
    assert logged["loss/dpo"][0] == 0.5
    assert [math.isnan(value) for value in logged["loss/dpo"]] == [False, True, True]
    assert len(logged["mining/pairs"]) == 3


def test_means_are_over_the_steps_that_define_a_value():
    nan = math.nan
    steps = [(1.0, nan), (2.0, 0.25), (math.inf, 0.75)]  # supervised and DPO loss
    outputs = [{**dict.fromkeys(STEP_KEYS, nan), "loss/supervised": a, "loss/dpo": b}
               for a, b in steps]  # fmt: skip
    means = step_means(outputs)
    assert means["loss/supervised"] == 1.5
    assert means["loss/dpo"] == 0.5
    assert math.isnan(means["rewards/margins"])


def test_registered_keys_can_be_logged_by_nnunets_logger():
    logger = LocalLogger()
    register_keys(logger.my_fantastic_logging, 0)
    for epoch in range(2):
        for key in KEYS:
            logger.log(key, 0.1 * epoch, epoch)
    assert all(logger.my_fantastic_logging[key] == [0.0, 0.1] for key in KEYS)


def test_values_of_a_round_have_the_mining_keys():
    assert round_values(SUMMARY) == {
        "mining/pairs": 3.0,
        "mining/samples": 5.0,
        "mining/dice_plain": 0.6,
        "mining/dice_chosen": 0.7,
        "mining/dice_rejected": 0.4,
        "mining/disagreement": 0.02,
    }


def test_values_of_the_warm_up_are_nan():
    values = round_values(None)
    assert set(values) == set(MINING_KEYS)
    assert all(math.isnan(value) for value in values.values())


def three_epochs(**given: list[float]) -> dict[str, list[float]]:
    logged = {key: [math.nan] * 3 for key in KEYS}
    return {**logged, "mean_fg_dice": [0.3, 0.4, 0.5], **given}


# pytest turns each warning, of an empty plot for example, into an error
@pytest.mark.parametrize(
    "logged",
    [
        three_epochs(),
        three_epochs(
            **{
                "loss/supervised": [0.9, 0.8, 0.7],
                "loss/dpo": [math.nan, 0.69, 0.5],
                "rewards/margins": [math.nan, 0.1, -0.2],
                "mining/pairs": [math.nan, 7.0, 0.0],
            }
        ),
    ],
    ids=["all NaN", "warm-up and two rounds"],
)
def test_progress_of_three_epochs_is_drawn_without_warnings(tmp_path, logged):
    stages = [Stage(0, 0, 1), Stage(1, 1, 2), Stage(2, 2, 3)]
    plot_progress(tmp_path, logged, stages)
    assert [file.name for file in tmp_path.iterdir()] == ["progress_mapo.png"]
    picture = imread(tmp_path / "progress_mapo.png")
    assert picture.shape[:2] == (12 * 90, 10 * 90)
    assert np.unique(picture[..., :3].reshape(-1, 3), axis=0).shape[0] > 20


def test_values_that_are_logged_show_in_the_picture(tmp_path):
    stages = [Stage(0, 0, 1), Stage(1, 1, 3)]
    pictures = []
    for logged in (three_epochs(), three_epochs(**{"loss/dpo": [math.nan, 0.6, 0.5]})):
        plot_progress(tmp_path, logged, stages)
        pictures.append(imread(tmp_path / "progress_mapo.png"))
    assert not np.array_equal(*pictures)


def test_progress_is_drawn_before_the_first_round_begins(tmp_path):
    logged = {key: values[:1] for key, values in three_epochs().items()}
    plot_progress(tmp_path, logged, [Stage(0, 0, 2), Stage(1, 2, 4)])
    assert (tmp_path / "progress_mapo.png").stat().st_size > 0
