from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO
from nnunetv2_mapo.tools.recommendation import CandidateDice, Settings, format_trainer, recommend

RATES = (0.0, 0.1, 0.2, 0.4)
# Gaps up to rate 0.1: 0, 0.25, 0.125, 0.25; up to 0.2: 0.125, 0.25, 0.25, 0.5
DICE = np.array(
    [
        [0.75, 0.75, 0.625, 0.5],
        [0.5, 0.75, 0.5, 0.0],
        [0.875, 0.75, 0.625, 0.25],
        [1.0, 0.75, 0.5, 0.25],
    ]
)


def make_preview(dice=DICE, rates=RATES) -> CandidateDice:
    return CandidateDice(rates, np.asarray(dice, float))


def falling(*medians: float) -> CandidateDice:
    """One sample whose Dice at rates 0, 0.1, 0.2 … is given."""
    return make_preview([medians], tuple(round(0.1 * k, 1) for k in range(len(medians))))


# What was looked at -------------------------------------------------------------------------------


def test_quartiles_of_the_dice_by_hand():
    # at rate 0: 0.5, 0.75, 0.875, 1; numpy's linear quantiles lie at places 0.75, 1.5, 2.25
    assert make_preview().quartiles()[:, 0].tolist() == [0.6875, 0.8125, 0.90625]


def test_each_wanted_rate_is_stood_for_by_the_nearest_one():
    preview = make_preview()
    assert preview.gaps((0.0, 0.04, 0.06)).tolist() == preview.gaps((0.0, 0.1)).tolist()
    assert preview.gaps((0.0, 0.9)).tolist() == [0.25, 0.5, 0.625, 0.75]


def test_share_of_samples_with_a_pair_by_hand():
    preview = make_preview()
    assert preview.gaps((0.0, 0.1)).tolist() == [0, 0.25, 0.125, 0.25]
    assert preview.gaps((0.0, 0.1, 0.2)).tolist() == [0.125, 0.25, 0.25, 0.5]
    assert preview.share_with_pair(Settings((0.0, 0.1), tau=0.125)) == 0.75
    assert preview.share_with_pair(Settings((0.0, 0.1), tau=0.25)) == 0.5  # the gap is enough
    assert preview.share_with_pair(Settings((0.0, 0.1), tau=0.26)) == 0
    assert preview.count_pairs(Settings((0.0, 0.1, 0.2), tau=0.2)) == 3


# Recommendation -----------------------------------------------------------------------------------


def test_largest_useful_rate_keeps_three_quarters_of_the_plain_median():
    assert falling(1.0, 0.875, 0.75, 0.5).largest_useful_rate() == 0.2
    assert falling(0.8, 0.5, 0.8, 0.8).largest_useful_rate() == 0.1  # the smallest there is
    assert falling(0.8, 0.8, 0.5, 0.8).largest_useful_rate() == 0.1  # none beyond the first lapse
    assert falling(0.8, 0.8, 0.8, 0.8).largest_useful_rate() == 0.3


def test_default_that_would_do_is_recommended():
    default = Settings((0.0, 0.1, 0.2), tau=0.1)
    assert recommend(falling(0.8, 0.7, 0.65, 0.1), default) == default


def test_rates_are_raised_where_the_default_gives_few_pairs():
    default = Settings((0.0, 0.05, 0.1), tau=0.1)
    settings = recommend(falling(0.8, 0.78, 0.75, 0.65, 0.1), default)
    assert settings == Settings((0.0, 0.15, 0.3), tau=0.1)  # gap 0.8 - 0.65 = 0.15


def test_tau_is_what_half_of_the_samples_reach_where_that_is_less_than_the_default():
    dice = [[0.8, 0.8 - gap] for gap in (0.01, 0.035, 0.045, 0.2)]
    default = Settings((0.0, 0.3), tau=0.1)
    settings = recommend(make_preview(dice, (0.0, 0.3)), default)
    assert settings == Settings((0.0, 0.3), tau=0.04)  # two of four gaps are at least 0.045


def test_tau_is_never_below_two_percent():
    settings = recommend(falling(0.8, 0.795), Settings((0.0, 0.1), tau=0.1))
    assert settings.tau == 0.02


def test_rate_of_a_fall_by_hand():
    preview = falling(0.8, 0.76, 0.68, 0.1)  # 5 %, 15 % and 87.5 % are lost
    assert preview.rate_at_fall(0.05) == pytest.approx(preview.rates[1])
    assert preview.rate_at_fall(0.1) == pytest.approx(sum(preview.rates[1:3]) / 2)
    assert preview.rate_at_fall(0.9) == preview.rates[-1]


@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_printed_trainer_is_python_with_the_recommended_settings(num_dimensions):
    settings, names = Settings((0.0, 0.0667, 0.1333), tau=0.07), {}
    exec(format_trainer(settings, num_dimensions, "channel"), names)
    trainer = names["nnUNetTrainer_MAPO_Previewed"]
    assert issubclass(trainer, nnUNetTrainer_MAPO)
    trainer.mapo.validate()
    rates = {f"rates_{num_dimensions}d": settings.rates}
    assert trainer.mapo == MAPOConfig(
        pair="case", rates="fixed", tau=0.07, granularity="channel", **rates
    )


def test_granularity_of_the_default_is_not_printed():
    assert "granularity" not in format_trainer(Settings((0.0, 0.1), 0.1), 2, "element")
