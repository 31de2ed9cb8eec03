"""A sweep's file, the trainings that follow from it, and what is written of them."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import nnunetv2_mapo
from nnunetv2_mapo.config import MAPOConfig
from nnunetv2_mapo.sweep import Sweep, describe_values, make_sweep, name_value
from nnunetv2_mapo.sweep_file import SweepError, SweepFile, read_entries
from nnunetv2_mapo.sweep_source import write_commands, write_trainers

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "sweep.md"
FILE: dict[str, Any] = {
    "dataset": "4",
    "configuration": "3d_fullres",
    "folds": [0, 1],
    "settings": {"tau": [0.05, 0.2], "beta": [0.3, 2]},
}
GENTLE = MAPOConfig(beta=0.3, lambda_supervised=3.0, fine_tune=True, num_epochs_factor=0.2)


def sweep_of(start: MAPOConfig | None = None, **entries: Any) -> Sweep:
    return make_sweep(read_entries({**FILE, **entries}), start or MAPOConfig())


def problems_of(start: MAPOConfig | None = None, **entries: Any) -> list[str]:
    with pytest.raises(SweepError) as error:
        sweep_of(start, **entries)
    return error.value.problems


def trainers(sweep: Sweep) -> list[str]:
    return [training.trainer for training in sweep.trainings]


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0.05, "tau005"),
        (0.5, "tau05"),
        (5, "tau5"),
        (5.0, "tau5"),
        (10, "tau10"),
        (2.5, "tau2p5"),
        (25, "tau25"),
        (0, "tau0"),
        (1e-4, "tau00001"),
        (-0.5, "taum05"),
        (0.0333333333333, "tau_7"),  # too long: the seventh value
        (1e-30, "tau_7"),
        ("image", "tau_image"),
        ("of any shape", "tau_7"),
        (True, "tau_True"),
        (None, "tau_None"),
        ((0.0, 0.1), "tau_7"),
    ],
)
def test_a_value_has_a_readable_name(value, name):
    assert name_value("tau", value, 7) == name


def test_long_values_are_shortened_in_words():
    values = {"tau": 0.1, "rates_3d": (0.0, 0.1, 0.2, 0.3, 0.4)}
    assert describe_values(values) == "tau = 0.1, rates_3d = (0.0, 0.1, …, 0.4)"
    assert describe_values({"rates_3d": (0.0, 0.1)}) == "rates_3d = (0.0, 0.1)"


# Trainings ----------------------------------------------------------------------------------------


def test_one_after_another_each_value_meets_the_other_settings_as_they_are():
    sweep = sweep_of()
    assert trainers(sweep) == [
        "nnUNetTrainer",
        "nnUNetTrainer_MAPO_NoPreference",
        "nnUNetTrainer_MAPO_Sweep_tau005",
        "nnUNetTrainer_MAPO_Sweep_tau02",
        "nnUNetTrainer_MAPO_Sweep_beta03",
        "nnUNetTrainer_MAPO_Sweep_beta2",
    ]
    assert [training.settings for training in sweep.trainings] == [
        None,
        MAPOConfig(num_rounds=0),
        MAPOConfig(tau=0.05),
        MAPOConfig(tau=0.2),
        MAPOConfig(beta=0.3),
        MAPOConfig(beta=2),
    ]
    assert [training.is_own for training in sweep.trainings] == [False] * 2 + [True] * 4


def test_the_grid_is_every_value_with_every_other():
    sweep = sweep_of(combine="all", baselines=[])
    assert {training.settings for training in sweep.trainings} == {
        MAPOConfig(tau=tau, beta=beta) for tau in (0.05, 0.2) for beta in (0.3, 2)
    }
    assert trainers(sweep)[1] == "nnUNetTrainer_MAPO_Sweep_tau005_beta2"
    assert sweep.trainings[1].label == "tau = 0.05, beta = 2"


def test_names_do_not_depend_on_the_order_of_the_settings():
    there = sweep_of(combine="all", settings={"beta": [2, 0.3], "tau": [0.2, 0.05]})
    assert set(trainers(there)) == set(trainers(sweep_of(combine="all")))


def test_every_setting_can_be_varied_and_no_two_values_share_a_name():
    for field in fields(MAPOConfig):
        values = [value for value in (0.25, 0.5, 2, 3) if is_valid(field.name, value)]
        sweep = sweep_of(settings={field.name: values or [field.default]}, baselines=[])
        assert len(sweep.trainings) == len(values or [field.default])


def is_valid(name: str, value: Any) -> bool:
    try:
        MAPOConfig(**{name: value}).validate()
    except ValueError:
        return False
    return True


def test_settings_that_have_a_trainer_already_are_not_trained_again_under_another_name():
    settings = {"tau": [0.1, 0.2], "beta": [1.0], "num_rounds": [0, 4]}  # 0.1, 1, 4: the defaults
    sweep = sweep_of(settings=settings, trainer="nnUNetTrainerDA5")
    assert {training.trainer: training.label for training in sweep.trainings} == {
        "nnUNetTrainerDA5": "nnUNetTrainerDA5",
        "nnUNetTrainerDA5_MAPO_NoPreference": "nnUNetTrainerDA5_MAPO_NoPreference, num_rounds = 0",
        "nnUNetTrainerDA5_MAPO": "nnUNetTrainerDA5_MAPO, tau = 0.1, beta = 1.0, num_rounds = 4",
        "nnUNetTrainerDA5_MAPO_Sweep_tau02": "tau = 0.2",
    }


def test_a_variant_gives_the_other_settings_and_has_a_control_of_its_own():
    sweep = sweep_of(GENTLE, variant="FineTune", settings={"tau": [0.1, 0.2]}, name="Tau")
    assert [(each.trainer, each.settings) for each in sweep.trainings] == [
        ("nnUNetTrainer", None),
        ("nnUNetTrainer_MAPO_Tau_NoPreference", replace(GENTLE, num_rounds=0)),
        ("nnUNetTrainer_MAPO_FineTune", GENTLE),
        ("nnUNetTrainer_MAPO_Tau_tau02", replace(GENTLE, tau=0.2)),
    ]


@pytest.mark.parametrize(
    ("baselines", "reference"),
    [
        (None, "nnUNetTrainer_MAPO_NoPreference"),
        (["nnUNetTrainer", "nnUNetTrainer_MAPO_Mine_NoPreference"],
         "nnUNetTrainer_MAPO_Mine_NoPreference"),
        (["nnUNetTrainer", "nnUNetTrainer_MAPO"], "nnUNetTrainer"),
        ([], "nnUNetTrainer_MAPO_Sweep_tau005"),
    ],
)  # fmt: skip
def test_the_reference_is_the_control_or_else_the_first_training(baselines, reference):
    assert sweep_of(baselines=baselines).reference.trainer == reference


def test_arguments_of_a_training_are_nnunets():
    sweep = sweep_of(plans="small", arguments=["-device", "cpu"])
    assert sweep.train_arguments("Dataset004_H", sweep.trainings[2], 1) == [
        "Dataset004_H", "3d_fullres", "1", "-tr", "nnUNetTrainer_MAPO_Sweep_tau005",
        "-p", "small", "-device", "cpu",
    ]  # fmt: skip
    assert sweep.model_folder(sweep.trainings[0]) == "nnUNetTrainer__small__3d_fullres"


# Bad files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"dataset": True}, "dataset: true is not valid: the number or name of a data set"),
        ({"dataset": ""}, 'dataset: "" is not valid'),
        ({"configuration": "3d fullres"}, 'configuration: "3d fullres" is not valid'),
        ({"folds": 0}, "folds: 0 is not valid: a list of different numbers from 0"),
        ({"folds": []}, "folds: [] is not valid"),
        ({"folds": ["all"]}, 'folds: ["all"] is not valid'),
        ({"folds": [1, 1]}, "folds: [1, 1] is not valid"),
        ({"trainer": "nnUNetTrainer_MAPO"}, "a base trainer without _MAPO"),
        ({"variant": "nnUNetTrainer_MAPO_FineTune"}, "null, or V of a trainer"),
        ({"combine": "grid"}, 'combine: "grid" is not valid: "one" (each value alone) or "all"'),
        ({"baselines": "nnUNetTrainer"}, "baselines: "),
        ({"arguments": ["--c"]}, "-tr, -p, --c, --val, --disable_checkpointing, -pretrained_weigh"),
        ({"arguments": ["-pretrained_weights", "a.pth"]}, "-pretrained_weights are the sweep's"),
        ({"arguments": ["-pretrained_weights=a.pth"]}, "-pretrained_weights are the sweep's"),
        ({"arguments": "-device cpu"}, "arguments: "),
        ({"name": "a__b"}, 'name: "a__b" is not valid: letters, digits and single underscores'),
        ({"fold": [0]}, "fold is not a key of a sweep. Did you mean folds?"),
        ({"zzz": 1}, "zzz is not a key of a sweep. Valid: dataset, configuration, folds"),
        ({"settings": {}}, "settings: {} is not valid"),
        ({"settings": {"taus": [0.1]}}, "settings: taus is not a setting. Did you mean tau?"),
        ({"settings": {"tau": 0.1}}, "settings: tau needs a list of values"),
        ({"settings": {"tau": [0.1, 0.10]}}, "settings: tau has a value twice: [0.1, 0.1]"),
        ({"settings": {"tau": [2]}}, "settings: tau=2 is not valid: a number in (0, 1]"),
        ({"settings": {"rates_3d": [0, 0.1]}}, "settings: rates_3d=0 is not valid: increasing"),
    ],
)
def test_a_mistake_in_the_file_is_named(entries, problem):
    [found] = [each for each in problems_of(**entries) if problem in each]
    assert found


def test_every_mistake_is_named_at_once():
    settings = {"taus": [1], "beta": [0], "tau": 0.1, "likelihood": ["images"]}
    found = problems_of(dataset=None, fold=[0], settings=settings)
    assert [each.split(" ")[0] for each in found] == ["dataset:", *["settings:"] * 4, "fold"]


@pytest.mark.parametrize("content", [[], "sweep", None, 3])
def test_content_that_is_no_object_is_refused(content):
    with pytest.raises(SweepError, match="an object is needed"):
        read_entries(content)


def test_missing_keys_are_named():
    with pytest.raises(SweepError) as error:
        read_entries({})
    keys = [each.split(" is missing")[0] for each in error.value.problems]
    assert keys == ["dataset", "configuration", "folds", "settings"]


def test_settings_are_checked_together_with_those_of_the_variant():
    start = MAPOConfig(adam_learning_rate=1e-4)
    [found] = problems_of(start, variant="Paper", settings={"learning_rate_factor": [0.1]})
    assert "adam_learning_rate replaces" in found


def test_the_examples_of_the_documentation_are_valid():
    text = PAGE.read_text(encoding="utf-8")
    examples = re.findall(r"^```json\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    first, rates = [make_sweep(read_entries(json.loads(each)), MAPOConfig()) for each in examples]
    assert all(f"| `{training.trainer}` |" in text for training in first.trainings)
    assert "nnUNetTrainer_MAPO_Rates_rates_3d_2_num_rounds0" in trainers(rates)
    recipes = re.findall(r"^\| [^|]*\? [^|]*\| `({[^`]*})`", text, flags=re.MULTILINE)
    assert len(recipes) == 6
    for recipe in recipes:
        sweep_of(settings=json.loads(recipe))


def test_every_key_of_the_file_is_documented():
    keys = re.findall(r"^\| `(\w+)` \| (yes|no) \|", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    needed = {each.name for each in fields(SweepFile) if each.default is each.default_factory}
    assert {key for key, _ in keys} == {each.name for each in fields(SweepFile)}
    assert {key for key, is_needed in keys if is_needed == "yes"} == needed


def test_settings_of_other_dimensions_are_refused():
    sweep = sweep_of(settings={"rates_2d": [[0, 0.1]], "tau": [0.2]})
    sweep.check_dimensions(2)
    with pytest.raises(SweepError) as error:
        sweep.check_dimensions(3)
    assert error.value.problems == [
        "settings: rates_2d has no effect in 3d_fullres, which is 3D: vary rates_3d"
    ]


# What is written ----------------------------------------------------------------------------------

RATES = [[0.0, 0.1], [round(0.01 * step, 2) for step in range(20)]]
WRITTEN = [
    sweep_of(),
    sweep_of(combine="all", settings={"rates_3d": RATES, "likelihood": ["image"]}),
    sweep_of(GENTLE, variant="FineTune", combine="all", settings={"tau": [0.2], "beta": [1]}),
    sweep_of(settings={"tau": [0.1]}),  # the default: nothing to write
]


@pytest.mark.parametrize("sweep", WRITTEN)
def test_written_classes_have_the_settings_of_their_trainings(sweep, monkeypatch):
    plain = type("nnUNetTrainer_MAPO", (), {})  # the real one takes seconds to import
    monkeypatch.setitem(vars(nnunetv2_mapo), "nnUNetTrainer_MAPO", plain)
    space: dict[str, Any] = {}
    exec(compile(write_trainers(sweep), "sweep_trainers.py", "exec"), space)
    classes = {name: value for name, value in space.items() if "_MAPO_Sweep" in name}
    own = {each.trainer: each.settings for each in sweep.trainings if each.is_own}
    assert {name: value.mapo for name, value in classes.items()} == own


def test_settings_are_in_one_line_where_they_fit_else_one_in_each():
    short, long = write_trainers(WRITTEN[1]).split("\n\n\n")[1:]
    assert short.splitlines()[1:] == [
        "    mapo = MAPOConfig(rates_3d=(0.0, 0.1), likelihood='image')"
    ]
    assert [line.split("=")[0] for line in long.splitlines()[1:]] == [
        "    mapo ", "        rates_3d", "        likelihood", "    )",
    ]  # fmt: skip


def test_classes_of_another_base_are_written_so_that_the_rule_finds_them():
    sweep = sweep_of(trainer="nnUNetTrainerDA5")
    assert trainers(sweep)[2] == "nnUNetTrainerDA5_MAPO_Sweep_tau005"
    names = [node.name for node in ast.parse(write_trainers(sweep)).body if hasattr(node, "name")]
    assert names[0] == "nnUNetTrainer_MAPO_Sweep_tau005"


def test_commands_train_fold_by_fold_and_compare_with_the_control():
    sweep = sweep_of(settings={"tau": [0.2]}, arguments=["-device", "cpu"])
    script = write_commands(sweep, "Dataset004_H", ["/my sweep", "/trainers"], "/my sweep")
    lines = [line for line in script.splitlines() if not line.startswith("#")]
    names = trainers(sweep)
    assert [shlex.split(line)[1:6] for line in lines[1:7]] == [
        ["Dataset004_H", "3d_fullres", fold, "-tr", name] for fold in "01" for name in names
    ]
    assert lines[1].endswith(" -p nnUNetPlans -device cpu")
    compared = re.findall(r'"\$nnUNet_results"/Dataset004_H/(\w+)__nnUNetPlans__3d_fullres', script)
    assert compared == ["nnUNetTrainer_MAPO_NoPreference", "nnUNetTrainer", names[2]]
    assert lines[7].endswith("-f 0 1 -o '/my sweep'")


def test_a_single_training_is_compared_with_nothing():
    sweep = sweep_of(settings={"tau": [0.2]}, baselines=[])
    script = write_commands(sweep, "Dataset004_H", ["/trainers"], "/sweep")
    assert script.count("nnUNetv2_train ") == 2  # folds
    assert "nnUNetv2_mapo compare" not in script


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("earlier", ["", "/mine"])
def test_commands_keep_the_trainer_folders_that_are_set(earlier):
    script = write_commands(sweep_of(), "Dataset004_H", ["/my sweep", "/trainers"], "/o")
    export = next(line for line in script.splitlines() if line.startswith("export"))
    shell = ["sh", "-c", f'{export}; printf %s "$nnUNet_extTrainer"']
    environment = {"nnUNet_extTrainer": earlier} if earlier else {}
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "/my sweep:/trainers" + (":/mine" if earlier else "")


def test_the_same_file_gives_the_same_text():
    assert write_trainers(sweep_of()) == write_trainers(sweep_of())
