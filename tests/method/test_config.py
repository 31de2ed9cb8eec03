from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.valid import METRICS

INVALID = {
    "rates_2d": [(), (0.0,), (0.1, 0.2), (0.0, 0.2, 0.1), (0.0, 0.1, 0.1), (0.0, 1.0), 0.1],
    "rates_3d": [(0.0, -0.1), (0.0, math.nan), (False, 0.5), (0.0, "0.1"), "0.1", None],
    "rates": ["Auto", "", None, (0.0, 0.1)],
    "rates_dice_fall": [0, 1, -0.1, math.nan, True, "0.1", None],
    "granularity": ["voxel", "", None, 1],
    "sampler": ["Dropout", "noise ", None, True],
    "thresholds": [(0.5,), (0.4, 0.5), (0.5, 0.0), (0.5, 1.0), (0.5, 0.4, 0.4), (0.5, "0.4"), 0.5],
    "noise_sigmas": [(0.0,), (0.01, 0.02), (0.0, -0.1), (0.0, math.nan), (0.0, 0.2, 0.1), None],
    "selection_unit_2d": ["volume", "", None],
    "selection_unit_3d": ["Case", 3, None],
    "tile_step_size": [0, 0.0, -0.5, 1.01, math.nan, True, None],
    "pair": ["regions", "", None, 1],
    "metric": [
        "Dice",
        "",
        None,
        1,
        {},
        {"dice": 0},
        {"dice": -1},
        {"nsd": math.nan},
        {"f1": 1},
        {"dice": "1"},
        ("dice",),
        "module.function",
        "module:",
        ":function",
        "a b:c",
        "a:b.c",
    ],
    "tolerance_mm": [-1, math.nan, math.inf, True, "1", None],
    "part_weight": ["Voxel", "", None, 1],
    "agree": [0, 1, "yes", None],
    "tau_max": [0, 0.0, -0.1, 1.0001, math.nan, True, "1", None],
    "tau": [0, 0.0, -0.1, 1.0001, math.nan, math.inf, True, "0.1", None],
    "tau_quantile": [1, 1.0, -0.1, math.nan, True, "0.5"],
    "beta": [0.0, -1.0, math.nan, math.inf, True, None],
    "lambda_supervised": [-0.5, math.nan, math.inf, False, None],
    "likelihood": ["Image", "sum", None, True],
    "kappa": [0, -1, math.nan, math.inf, True, None],
    "loss_type": ["dpo", "Sigmoid", None],
    "label_smoothing": [0.5, 1, -0.1, math.nan, True, None],
    "reference": ["copy", "", None, True],
    "reference_update": ["always", "", None, False],
    "reference_decay": [0, 1, 1.0, -0.1, math.nan, None],
    "warmup_dropout": [0, 1, "off", None],
    "preference_dropout": [True, False, "on", "asymmetric", None],
    "warmup_fraction_2d": [0.0, 1.0, -0.1, 1.5, math.nan, True, None],
    "warmup_fraction_3d": [0, 1, math.inf, False, "0.4"],
    "warmup_epochs": [0, -1, 1.5, True, "3"],
    "num_rounds": [-1, 1.0, True, None],
    "cases_per_round": [0, -1, 1.0, 0.0, 1.5, True, math.nan, "all"],
    "keep_rounds": [0, 1, "all", None],
    "start_from": ["latest", "", None],
    "best_by": ["dice", "", None, "nsd"],
    "seed": [-1, 0.0, False, None],
    "num_epochs_2d": [0, 1, 300.0, True],
    "num_epochs_3d": [1, -5, "1300"],
    "adam_learning_rate": [0.0, -1e-4, math.nan, math.inf, True, "1e-4"],
    "fine_tune": [0, 1, "checkpoint.pth", None],
    "num_epochs_factor": [0, -0.1, math.nan, math.inf, True, "0.1", None],
    "learning_rate_factor": [0.0, -1, math.nan, math.inf, False, None],
    "unlabelled": ["dpo", "", None, True],
    "unlabelled_share": [0, 1, 1.0, -0.1, math.nan, True, None],
    "dropout_include": ["decoder.*", ("",), (1,), None, {"encoder"}],
    "dropout_exclude": ["", ["encoder", ""], (None,), 0],
}
VALID = {
    "rates_2d": [(0, 0.5), [0.0, 0.1], (0.0, 0.999)],
    "rates_3d": [(0.0, 1e-6, 0.3)],
    "rates": ["auto", "fixed"],
    "rates_dice_fall": [1e-6, 0.999],
    "granularity": ["element", "channel"],
    "sampler": ["dropout", "threshold", "noise"],
    "thresholds": [(0.5, 0.4), [0.5, 0.6, 0.4], (0.5, 0.999)],
    "noise_sigmas": [(0, 1), [0.0, 0.1], (0.0, 1e-6, 7)],
    "selection_unit_2d": ["case", "slice", "window"],
    "selection_unit_3d": ["case", "slice", "window"],
    "tile_step_size": [1, 1.0, 0.5, 0.01],
    "pair": ["region", "case"],
    "metric": [
        *METRICS,
        {"lesion_f1": 0.5, "dice": 0.5},
        {"nsd": 3},
        "mine:score",
        "my.own_1.metrics:f1",
        {"my.metrics:f1": 1, "dice": 2},
    ],
    "tolerance_mm": [0, 0.5, 3],
    "part_weight": ["voxel", "part"],
    "agree": [True, False],
    "tau": [1, 1.0, 1e-9],
    "tau_max": [1, 0.3],
    "tau_quantile": [None, 0, 0.0, 0.999],
    "beta": [1e-6, 100],
    "lambda_supervised": [0, 0.0, 7.5],
    "likelihood": ["voxel", "image", "disagreement"],
    "kappa": [1e-6, 2, 100],
    "loss_type": ["sigmoid", "ipo", "hinge"],
    "label_smoothing": [0, 0.0, 0.49],
    "reference": ["cached", "network", "none"],
    "reference_update": ["never", "round", "average"],
    "reference_decay": [1e-6, 0.999],
    "warmup_dropout": [True, False],
    "preference_dropout": ["without pair", "off", "same masks"],
    "warmup_fraction_2d": [1e-6, 0.999],
    "warmup_fraction_3d": [0.5],
    "warmup_epochs": [None, 1, 1000],
    "num_rounds": [0, 1, 50],
    "cases_per_round": [None, 1, 500, 0.1],
    "keep_rounds": [True, False],
    "start_from": ["best", "last"],
    "best_by": ["pseudo Dice", "metric"],
    "seed": [0, 2**40],
    "num_epochs_2d": [None, 2],
    "num_epochs_3d": [None, 1300],
    "adam_learning_rate": [None, 1e-4, 1],
    "fine_tune": [True, False],
    "num_epochs_factor": [1e-9, 0.1, 2],
    "learning_rate_factor": [1e-9, 0.1, 10],
    "unlabelled": ["off", "preferences", "chosen", "pseudo-label"],
    "unlabelled_share": [1e-6, 0.999],
    "dropout_include": [(), ("blocks.*.mixer",), ["encoder"]],
    "dropout_exclude": [(), ("decoder.*", "head")],
}
CASES = [(name, value) for name, values in INVALID.items() for value in values]
# Settings that are only valid together with another one.
NEEDED = {
    "rates_dice_fall": {"rates": "auto"},
    "kappa": {"likelihood": "voxel"},
    "tau_max": {"pair": "case"},
    "tau_quantile": {"pair": "case"},
    "thresholds": {"sampler": "threshold"},
    "noise_sigmas": {"sampler": "noise"},
    "reference_decay": {"reference": "network", "reference_update": "average"},
    "tolerance_mm": {"metric": "nsd"},
    "unlabelled_share": {"reference": "network", "unlabelled": "preferences"},
}
# Values that are.
NEEDED_BY = {
    ("reference_update", "average"): {"reference": "network"},
    ("preference_dropout", "same masks"): {"reference": "network"},
    ("unlabelled", "preferences"): {"reference": "network"},
}
VALID_CASES = [(name, value) for name, values in VALID.items() for value in values]


def test_every_field_has_valid_and_invalid_examples_here():
    names = {field.name for field in fields(MAPOConfig)}
    assert set(INVALID) == names
    assert set(VALID) == names


def test_defaults_are_valid():
    MAPOConfig().validate()


@pytest.mark.parametrize(("name", "value"), CASES)
def test_an_invalid_value_is_named_with_its_field_and_only_when_validated(name, value):
    config = MAPOConfig(**{name: value, **NEEDED.get(name, {})})
    with pytest.raises(ValueError) as error:
        config.validate()
    first, *problems = str(error.value).splitlines()
    assert first == "Invalid MAPOConfig:"
    assert len(problems) == 1
    assert problems[0].startswith(f"  {name}={value!r} is not valid: ")


@pytest.mark.parametrize(("name", "value"), VALID_CASES)
def test_the_ends_of_a_valid_range_are_accepted(name, value):
    more = NEEDED_BY.get((name, value), {}) if isinstance(value, str) else {}
    MAPOConfig(**{name: value, **NEEDED.get(name, {}), **more}).validate()


@pytest.mark.parametrize("reference", ["cached", "none"])
@pytest.mark.parametrize(("name", "value"), NEEDED_BY)
def test_what_compares_with_a_second_network_is_refused_without_one(name, value, reference):
    config = MAPOConfig(**{name: value, "reference": reference})
    with pytest.raises(ValueError, match=f"{name}='{value}' is not valid: it needs reference='ne"):
        config.validate()


@pytest.mark.parametrize("name", NEEDED)
def test_a_setting_that_would_have_no_effect_is_refused(name):
    *_, (switch, needed) = NEEDED[name].items()
    other = next(value for value in VALID[switch] if value != needed)
    given = next(value for value in VALID[name] if value != getattr(MAPOConfig(), name))
    config = MAPOConfig(**{name: given, switch: other})
    with pytest.raises(ValueError, match=f"{name}=.* is not valid: it needs {switch}='{needed}'"):
        config.validate()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"warmup_dropout": True}, True),
        ({"preference_dropout": "without pair"}, True),
        ({"preference_dropout": "without pair", "num_rounds": 0}, False),
    ],
)
def test_a_training_has_dropout_where_any_of_its_stages_has_it(settings, expected):
    assert MAPOConfig(**settings).trains_with_dropout == expected


@pytest.mark.parametrize("update", ["round", "average"])
def test_no_reference_is_never_updated(update):
    config = MAPOConfig(reference="none", reference_update=update)
    with pytest.raises(ValueError, match=f"reference_update='{update}' is not valid: "):
        config.validate()


def test_several_problems_are_listed_at_once():
    config = MAPOConfig(
        rates_3d=(0.1, 0.2), tau=3, beta=-1, granularity="line", seed=-4, warmup_epochs=0
    )
    with pytest.raises(ValueError) as error:
        config.validate()
    problems = str(error.value).splitlines()[1:]
    assert sorted(problem.split("=")[0].strip() for problem in problems) == [
        "beta", "granularity", "rates_3d", "seed", "tau", "warmup_epochs",
    ]  # fmt: skip


def test_a_message_says_what_is_valid():
    with pytest.raises(ValueError, match=r"tau=2 is not valid: a number in \(0, 1\] is needed"):
        MAPOConfig(tau=2).validate()
    with pytest.raises(ValueError, match=r"choose one of \['voxel', 'disagreement', 'image'\]"):
        MAPOConfig(likelihood="sum").validate()
    with pytest.raises(ValueError, match="num_rounds=-1 is not valid: an integer >= 0 is needed"):
        MAPOConfig(num_rounds=-1).validate()


def test_label_smoothing_fits_the_loss_type():
    MAPOConfig(loss_type="robust", label_smoothing=0.1).validate()
    for loss_type in ("ipo", "hinge"):
        with pytest.raises(ValueError, match=r"label_smoothing=0.1 is not valid: it is of"):
            MAPOConfig(loss_type=loss_type, label_smoothing=0.1).validate()
    with pytest.raises(ValueError, match=r"'robust' needs a number in \(0, 0.5\)"):
        MAPOConfig(loss_type="robust").validate()


def test_each_sampler_has_the_papers_candidates():
    values = {
        name: MAPOConfig(sampler=name).candidates(2).values
        for name in ("dropout", "threshold", "noise")
    }
    assert values["dropout"] == MAPOConfig().rates_2d
    assert values["threshold"][0] == 0.5
    assert sorted(values["threshold"]) == [
        0.375, 0.4, 0.425, 0.45, 0.475, 0.5, 0.525, 0.55, 0.575, 0.6, 0.625,
    ]  # fmt: skip
    assert values["noise"] == (
        0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05,
    )  # fmt: skip


def test_settings_survive_json_and_another_version():
    config = MAPOConfig(tau=0.2, thresholds=(0.5, 0.3), sampler="threshold")
    settings = json.loads(json.dumps(config.to_dict()))
    assert MAPOConfig.from_dict(settings) == config
    del settings["loss_type"]  # as before there were several
    assert MAPOConfig.from_dict({**settings, "of_a_later_version": 1}) == config


def test_rates_of_training_are_the_papers_in_2d_and_lighter_in_3d():
    assert MAPOConfig().training_rates(2) == (
        0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05,
    )  # fmt: skip
    assert MAPOConfig().training_rates(3) == (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
    before = MAPOConfig.from_dict({})  # version 0.1
    assert before.training_rates(3) == (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


def test_dimension_decides_between_the_two_settings_of_a_pair():
    config = MAPOConfig(
        rates_2d=(0.0, 0.1),
        rates_3d=(0.0, 0.2),
        num_epochs_2d=20,
        num_epochs_3d=30,
        warmup_fraction_2d=0.5,
        warmup_fraction_3d=0.2,
    )
    assert (config.training_rates(2), config.training_rates(3)) == ((0.0, 0.1), (0.0, 0.2))
    assert (config.num_epochs(2, 1000), config.num_epochs(3, 1000)) == (20, 30)
    assert config.schedule(10, 2).warmup_epochs == 5
    assert config.schedule(10, 3).warmup_epochs == 2


@pytest.mark.parametrize(
    ("factor", "base", "expected"), [(1.0, 1000, 1000), (0.1, 250, 25), (0.1, 5, 2), (2, 100, 200)]
)
def test_the_length_follows_the_base_trainer_s(factor, base, expected):
    assert MAPOConfig(num_epochs_factor=factor).num_epochs(3, base) == expected
    assert MAPOConfig(num_epochs_factor=factor, num_epochs_3d=7).num_epochs(3, base) == 7


def test_a_learning_rate_factor_besides_a_fixed_learning_rate_is_refused():
    config = MAPOConfig(adam_learning_rate=1e-4, learning_rate_factor=0.1)
    with pytest.raises(ValueError, match=r"learning_rate_factor=0.1 is not valid: .* replaces"):
        config.validate()


def test_warmup_epochs_take_the_place_of_the_fractions():
    config = MAPOConfig(warmup_epochs=7)
    assert config.schedule(100, 2).warmup_epochs == 7
    assert config.schedule(100, 3).warmup_epochs == 7


@pytest.mark.parametrize(("warmup_epochs", "num_epochs"), [(10, 10), (500, 250), (1, 1)])
def test_a_warmup_that_leaves_no_epoch_for_preferences_is_refused(warmup_epochs, num_epochs):
    config = MAPOConfig(warmup_epochs=warmup_epochs)
    with pytest.raises(
        ValueError, match=f"warmup_epochs={warmup_epochs} leaves no epoch .* of {num_epochs}"
    ):
        config.schedule(num_epochs, 3)
    assert replace(config, num_rounds=0).schedule(num_epochs, 3).stages[-1].round == 0


def test_to_dict_survives_json():
    content = MAPOConfig(rates_2d=(0.0, 0.1)).to_dict()
    assert content["rates_2d"] == [0.0, 0.1]
    assert json.loads(json.dumps(content)) == content


def test_a_saved_configuration_does_not_differ_from_itself():
    config = MAPOConfig()
    assert config.differences(json.loads(json.dumps(config.to_dict()))) == []


def test_differences_name_field_earlier_and_current_value():
    earlier = json.loads(json.dumps(MAPOConfig(tau=0.3, rates_3d=(0.0, 0.5)).to_dict()))
    assert MAPOConfig().differences(earlier) == [
        "rates_3d: [0.0, 0.5] then, [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06] now",
        "tau: 0.3 then, 0.05 now",
    ]


def test_a_field_that_an_earlier_version_had_not_means_what_it_did():
    earlier = MAPOConfig().to_dict()
    for name in ("granularity", "pair", "agree", "rates"):
        del earlier[name]
    earlier["removed_since"] = 5
    assert MAPOConfig(pair="case", agree=False, rates="fixed").differences(earlier) == []
    assert MAPOConfig(granularity="channel").differences(earlier) == [
        "rates: fixed then, auto now",
        "granularity: element then, channel now",
        "pair: case then, region now",
        "agree: False then, True now",
    ]


def test_the_asymmetric_dropout_of_an_earlier_version_is_named_and_cannot_be_had():
    earlier = {"preference_dropout": True}
    assert any(
        line == "preference_dropout: asymmetric then, off now"
        for line in MAPOConfig().differences(earlier)
    )
    with pytest.raises(ValueError, match=r"preference_dropout='asymmetric' is not valid"):
        MAPOConfig.from_dict(earlier).validate()
    assert MAPOConfig.from_dict({"preference_dropout": False}).preference_dropout == "off"


def test_a_band_of_gaps_that_is_empty_is_refused():
    with pytest.raises(ValueError, match=r"tau_max=0.1 is not valid: tau=0.3 is above it"):
        MAPOConfig(pair="case", tau=0.3, tau_max=0.1).validate()


def test_configurations_cannot_be_changed_in_place():
    config = MAPOConfig()
    with pytest.raises(AttributeError):
        config.tau = 0.5
    assert replace(config, tau=0.5).tau == 0.5


def test_a_metric_of_several_survives_json():
    config = MAPOConfig(metric={"lesion_f1": 0.5, "dice": 0.5})
    assert MAPOConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.ranked_by == "0.5 lesion_f1 + 0.5 dice"
    assert config.differences(MAPOConfig().to_dict()) == [
        "metric: dice then, {'lesion_f1': 0.5, 'dice': 0.5} now"
    ]


def test_slices_of_a_2d_configuration_are_no_volume_for_a_metric_of_distances():
    MAPOConfig(selection_unit_2d="case").validate()
    with pytest.raises(ValueError, match=r"metric='nsd' is not valid with selection_unit_2d"):
        MAPOConfig(metric="nsd", selection_unit_2d="case").validate()
