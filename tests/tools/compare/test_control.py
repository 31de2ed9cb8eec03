"""Which comparison is the primary one, by what was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from metric_files import RISING, write_metrics, write_training

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.tools.compare import Method, read_methods
from nnunetv2_mapo.tools.compare.control import Pair, choose_pairs, list_mixed, name_control
from nnunetv2_mapo.tools.history import read_history

PLAIN = MAPOConfig(num_rounds=2, warmup_epochs=2)
DROPOUT = replace(PLAIN, warmup_dropout=True, preference_dropout="without pair")
STOCK, MAPO, TUNED = "nnUNetTrainer", "nnUNetTrainer_MAPO", "nnUNetTrainer_MAPO_Tuned"
CONTROL, CHOICES = f"{TUNED}_NoPreference", f"{MAPO}_Choices"
TRAININGS = {
    STOCK: None,
    MAPO: PLAIN,
    f"{MAPO}_Strict": replace(PLAIN, tau=0.9),
    f"{MAPO}_NoPreference": replace(PLAIN, num_rounds=0),
    TUNED: DROPOUT,
    CONTROL: replace(DROPOUT, num_rounds=0),
    "nnUNetTrainerDA5": None,
    CHOICES: replace(PLAIN, unlabelled="preferences", fine_tune=True),
    f"{CHOICES}_NoPreference": replace(
        PLAIN, unlabelled="preferences", fine_tune=True, num_rounds=0
    ),
    f"{CHOICES}_PseudoLabels": replace(PLAIN, unlabelled="pseudo-label", fine_tune=True),
    f"{MAPO}_Pseudo": replace(PLAIN, unlabelled="pseudo-label"),
}


def make_methods(tmp_path: Path, *trainers: str, without_pairs: str = "") -> list[Method]:
    folders = [tmp_path / f"{trainer}__nnUNetPlans__2d" for trainer in trainers]
    for trainer, folder in zip(trainers, folders, strict=True):
        pairs = (0, 0) if trainer == without_pairs else (3, 1)
        write_training(folder / "fold_0", TRAININGS[trainer], pairs=pairs)
        write_metrics(folder / "fold_0" / "validation", RISING)
    return read_methods(folders)


@pytest.mark.parametrize(
    ("trainers", "expected"),
    [
        ((STOCK, MAPO), [(MAPO, STOCK)]),
        ((MAPO, STOCK), [(MAPO, STOCK)]),
        ((STOCK, CONTROL, TUNED), [(TUNED, CONTROL), (CONTROL, STOCK), (TUNED, STOCK)]),
        ((TUNED, CONTROL, STOCK), [(TUNED, CONTROL), (CONTROL, TUNED), (STOCK, TUNED)]),
        ((STOCK, MAPO, CONTROL, TUNED), [(TUNED, CONTROL), (MAPO, STOCK), (CONTROL, STOCK)]),
        ((STOCK, "nnUNetTrainerDA5"), [("nnUNetTrainerDA5", STOCK)]),
        (
            (f"{CHOICES}_PseudoLabels", f"{CHOICES}_NoPreference", CHOICES),
            [(CHOICES, f"{CHOICES}_NoPreference"), (CHOICES, f"{CHOICES}_PseudoLabels")],
        ),
        ((MAPO, f"{MAPO}_Pseudo"), [(MAPO, f"{MAPO}_Pseudo")]),
    ],
)
def test_the_primary_comparison_is_of_preferences_with_their_control(tmp_path, trainers, expected):
    pairs = choose_pairs(make_methods(tmp_path, *trainers))
    assert pairs[0] == expected[0]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert {frozenset(pair) for pair in pairs} >= {frozenset(pair) for pair in expected}


@pytest.mark.parametrize("last", [f"{MAPO}_Strict", MAPO])
def test_a_training_without_pairs_is_the_control_of_one_with_pairs(tmp_path, last):
    trainers = sorted((MAPO, f"{MAPO}_Strict"), key=lambda each: each == last)
    methods = make_methods(tmp_path, *trainers, without_pairs=f"{MAPO}_Strict")
    assert choose_pairs(methods) == [Pair(MAPO, f"{MAPO}_Strict")]


def test_alone_with_its_base_a_training_without_pairs_is_what_is_asked_about(tmp_path):
    for trainers in ((STOCK, MAPO), (MAPO, STOCK)):
        folder = tmp_path / trainers[0]
        methods = make_methods(folder, *trainers, without_pairs=MAPO)
        assert choose_pairs(methods) == [Pair(MAPO, STOCK)]


def test_folders_of_segmentations_are_compared_with_the_first(tmp_path):
    for name in "ABC":
        write_metrics(tmp_path / name, RISING)
    pairs = choose_pairs(read_methods([tmp_path / name for name in "ABC"]))
    assert pairs == [Pair("C", "A"), Pair("B", "A")]


def test_what_differs_besides_preferences_is_named(tmp_path):
    stock, mapo, tuned, control, other = make_methods(
        tmp_path, STOCK, MAPO, TUNED, CONTROL, "nnUNetTrainerDA5"
    )
    assert list_mixed(mapo, stock) == list_mixed(tuned, control) == []
    assert list_mixed(tuned, stock) == ["dropout in training"]
    assert list_mixed(mapo, other) == ["the base trainer"]


def test_without_its_checkpoints_the_name_of_a_training_tells(tmp_path):
    for trainer in (STOCK, "nnUNetTrainerDA5"):
        write_metrics(tmp_path / f"{trainer}__nnUNetPlans__2d/fold_0/validation", RISING)
    write_training(tmp_path / f"{MAPO}__nnUNetPlans__2d/fold_0", PLAIN, pairs=(3, 1))
    write_metrics(tmp_path / f"{MAPO}__nnUNetPlans__2d/fold_0/validation", RISING)
    names = ("nnUNetTrainerDA5", STOCK, MAPO)
    methods = read_methods([tmp_path / f"{name}__nnUNetPlans__2d" for name in names])
    assert choose_pairs(methods)[0] == Pair(MAPO, STOCK)
    assert list_mixed(methods[2], methods[0]) == ["the base trainer"]


def test_fine_tunings_of_other_weights_are_a_mixture(tmp_path):
    folders = []
    for name, weights in ((f"{MAPO}_Tune_NoPreference", "a"), (f"{MAPO}_Tune", "b")):
        folders.append(tmp_path / f"{name}__nnUNetPlans__2d")
        config = replace(PLAIN, fine_tune=True, num_rounds=0 if weights == "a" else 2)
        write_training(folders[-1] / "fold_0", config, pairs=(3, 1), base={"weights": weights})
        write_metrics(folders[-1] / "fold_0/validation", RISING)
    control, mapo = read_methods(folders)
    assert list_mixed(mapo, control) == ["the start"]


@pytest.mark.parametrize(
    ("trainer", "config", "expected"),
    [
        ("nnUNetTrainerDA5_MAPO", PLAIN, "nnUNetTrainerDA5"),
        (f"{MAPO}_IPO", replace(PLAIN, loss_type="ipo"), STOCK),
        (TUNED, DROPOUT, CONTROL),
        (f"{MAPO}_Tune", replace(PLAIN, fine_tune=True), f"{MAPO}_Tune_NoPreference"),
        ("Own", PLAIN, ""),
        (f"{MAPO}_Long", replace(PLAIN, num_epochs_2d=6), f"{MAPO}_Long_NoPreference"),
    ],
)
def test_the_control_is_the_base_trainer_where_nothing_else_changes(
    tmp_path, trainer, config, expected
):
    write_training(tmp_path / "fold_0", config, pairs=(3, 1))
    assert name_control(trainer, read_history(tmp_path / "fold_0")) == expected
