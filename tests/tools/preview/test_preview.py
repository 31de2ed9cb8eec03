from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.support.files import WriteError
from nnunetv2_mapo.tools.models import TrainedModel
from nnunetv2_mapo.tools.preview.preview import Preview, Settings, format_trainer, recommend
from nnunetv2_mapo.tools.preview.results import SampleView, Seen

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


def make_preview(dice=DICE, rates=RATES) -> Preview:
    """Candidates i and j of sample n differ in (n + 1)·|i - j| % of the voxels."""
    dice = np.asarray(dice, float)
    places = np.arange(len(rates))
    differing = np.abs(places[:, None] - places) / 100
    return Preview(rates, dice, np.arange(1, len(dice) + 1)[:, None, None] * differing)


def falling(*medians: float) -> Preview:
    """One sample whose Dice at rates 0, 0.1, 0.2 … is given."""
    return make_preview([medians], tuple(round(0.1 * k, 1) for k in range(len(medians))))


# What was looked at -------------------------------------------------------------------------------


def test_quartiles_of_the_dice_by_hand():
    # at rate 0: 0.5, 0.75, 0.875, 1; numpy's linear quantiles lie at places 0.75, 1.5, 2.25
    assert make_preview().quartiles()[:, 0].tolist() == [0.6875, 0.8125, 0.90625]


def test_each_wanted_rate_is_stood_for_by_the_nearest_one_once():
    preview = make_preview()
    assert preview.stand_ins([0.0, 0.2]) == [0, 2]
    assert preview.stand_ins([0.0, 0.04, 0.06, 0.1, 0.9]) == [0, 1, 3]


def test_share_of_samples_with_a_pair_by_hand():
    preview = make_preview()
    assert preview.gaps((0.0, 0.1)).tolist() == [0, 0.25, 0.125, 0.25]
    assert preview.gaps((0.0, 0.1, 0.2)).tolist() == [0.125, 0.25, 0.25, 0.5]
    assert preview.share_with_pair(Settings((0.0, 0.1), tau=0.125)) == 0.75
    assert preview.share_with_pair(Settings((0.0, 0.1), tau=0.25)) == 0.5  # the gap is enough
    assert preview.share_with_pair(Settings((0.0, 0.1), tau=0.26)) == 0
    assert preview.count_pairs(Settings((0.0, 0.1, 0.2), tau=0.2)) == 3


def test_disagreement_is_the_median_over_the_pairs():
    # pairs of rates 0, 0.2 and 0.4 at τ 0.5, as places of best and worst: sample 1: 0, 3;
    # sample 2: 0, 3; sample 3: 0, 3. Shares 2·3, 3·3, 4·3 %
    settings = Settings((0.0, 0.2, 0.4), tau=0.5)
    assert make_preview().median_disagreement(settings) == pytest.approx(0.09)
    assert make_preview().median_disagreement(Settings((0.0, 0.1), tau=0.5)) is None


# Recommendation -----------------------------------------------------------------------------------


def test_largest_useful_rate_keeps_three_quarters_of_the_plain_median():
    assert falling(1.0, 0.875, 0.75, 0.5).largest_useful_rate() == 0.2
    assert falling(0.8, 0.5, 0.8, 0.8).largest_useful_rate() == 0.1  # the smallest there is
    assert falling(0.8, 0.8, 0.5, 0.8).largest_useful_rate() == 0.1  # none beyond the first lapse
    assert falling(0.8, 0.8, 0.8, 0.8).largest_useful_rate() == 0.3


def test_default_that_would_do_is_recommended():
    default = Settings((0.0, 0.1, 0.2), tau=0.1)
    assert recommend(falling(0.8, 0.7, 0.65, 0.1), default, knows_dropout=True) == default


def test_rates_are_raised_where_the_default_gives_few_pairs():
    default = Settings((0.0, 0.05, 0.1), tau=0.1)
    settings = recommend(falling(0.8, 0.78, 0.75, 0.65, 0.1), default, knows_dropout=True)
    assert settings == Settings((0.0, 0.15, 0.3), tau=0.1)  # gap 0.8 - 0.65 = 0.15


def test_tau_is_what_half_of_the_samples_reach_where_that_is_less_than_the_default():
    dice = [[0.8, 0.8 - gap] for gap in (0.01, 0.035, 0.045, 0.2)]
    default = Settings((0.0, 0.3), tau=0.1)
    settings = recommend(make_preview(dice, (0.0, 0.3)), default, knows_dropout=True)
    assert settings == Settings((0.0, 0.3), tau=0.04)  # two of four gaps are at least 0.045


def test_tau_is_never_below_two_percent():
    settings = recommend(falling(0.8, 0.795), Settings((0.0, 0.1), tau=0.1), knows_dropout=True)
    assert settings.tau == 0.02


def test_rates_below_the_default_are_recommended_only_to_a_network_that_knows_dropout():
    preview, default = falling(0.8, 0.65, 0.4, 0.1), Settings((0.0, 0.15, 0.3), tau=0.1)
    assert recommend(preview, default, knows_dropout=True) == Settings((0.0, 0.05, 0.1), tau=0.1)
    assert recommend(preview, default, knows_dropout=False) == default


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


# What is said and written ------------------------------------------------------------------------


def make_model(granularity: str = "element", **dataset_json: object) -> TrainedModel:
    """A 2D model that was trained with MAPO."""
    return TrainedModel(
        network=nn.Identity(),
        labels=Labels(num_heads=2),
        trainer_name="nnUNetTrainer_MAPO",
        configuration="2d",
        plans_manager=None,
        configuration_manager=SimpleNamespace(patch_size=(8, 8)),
        label_manager=None,
        dataset_json=dataset_json,
        folder=Path("Dataset001_One/nnUNetTrainer_MAPO__nnUNetPlans__2d"),
        fold=0,
        mirroring_axes=None,
        mapo=MAPOConfig(granularity=granularity).to_dict(),
    )


def see(model: TrainedModel, *dice: float) -> Seen:
    """One sample with the Dice of two candidates, at the default rates."""
    sample = SampleView("case", 0, True, np.array(dice), np.array([[0, 0.5], [0.5, 0]]))
    return Seen(
        model, "checkpoint_final.pth", 1, 1, (0.0, 0.1), [sample], Settings((0.0, 0.1), 0.1)
    )


def test_default_is_trained_as_it_is_only_with_the_dropout_that_was_looked_at():
    same, other = (str(see(make_model(kind), 0.8, 0.65)) for kind in ("element", "channel"))
    assert "Train with nnUNetTrainer_MAPO as it is" in same
    assert "finds its rates itself: here 0 to about 0.053, where" in same  # 10 of 18.75 %
    assert "MAPOConfig" not in same
    assert "as it is" not in other
    assert "To train with the default ones" in other
    assert "granularity='channel'" in other


def test_file_without_pairs_is_json_and_replaces_an_older_one_at_once(tmp_path, monkeypatch):
    seen = see(make_model(), 0.8, 0.8)
    path = seen.write(tmp_path)
    content = path.read_bytes()
    written = json.loads(content, parse_constant=pytest.fail)  # called for NaN
    assert written["settings"]["default"]["num_pairs"] == 0
    assert written["settings"]["default"]["median_disagreement"] is None

    def fill_the_disk(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(WriteError, match="No space left"):
        seen.write(tmp_path)
    assert path.read_bytes() == content


def test_channels_may_have_the_name_of_older_data_sets():
    assert make_model(channel_names={"0": "T1", "1": "T2"}).channel_names == ["T1", "T2"]
    assert make_model(modality={"0": "CT"}).channel_names == ["CT"]
