"""Trainings that rank by another metric than Dice."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from boxes import DATASET
from test_training import read_log, read_manifests, stop_in_epoch
from test_variants import MakeVariant, make_variant

from nnunetv2_mapo.support.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
__all__ = ["make_variant"]  # the fixture


def test_the_best_checkpoint_is_by_the_metric_on_fixed_patches(make_variant: MakeVariant) -> None:
    trainer = make_variant({"metric": "nsd", "best_by": "metric", "start_from": "best"})
    measured = iter([0.1, 0.9, 0.5, 0.5, 0.5, 0.5])
    trainer.on_train_start()
    object.__setattr__(trainer._fixed_patches, "measure", lambda *_: next(measured))
    trainer.on_train_start = lambda: None
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert logged["validation/metric"] == [0.1, 0.9, 0.5, 0.5, 0.5, 0.5]
    averages = logged["validation/metric_ema"]
    assert averages[1] == pytest.approx(0.9 * 0.1 + 0.1 * 0.9)
    best = torch.load(Path(trainer.output_folder, "checkpoint_best.pth"), weights_only=False)
    assert best["_best_ema"] == max(averages)
    assert best["current_epoch"] == averages.index(max(averages)) + 1
    assert logged["ema_fg_dice"] != averages
    assert "preferences start from the weights after 2 epochs" in read_log(trainer)


def test_the_best_by_the_metric_survives_an_interruption(make_variant: MakeVariant) -> None:
    settings = {"metric": "lesion_f1", "best_by": "metric"}
    stopped = make_variant(settings, fold=1)
    stop_in_epoch(stopped, epoch=3)
    again = make_variant(settings, fold=1, continue_training=True)
    again.run_training()
    logged = again.logger.local_logger.my_fantastic_logging
    assert len(logged["validation/metric"]) == len(logged["validation/metric_ema"]) == 6
    assert all(math.isfinite(value) for value in logged["validation/metric_ema"])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_records_and_log_name_the_metric(make_variant: MakeVariant, configuration: str) -> None:
    trainer = make_variant({"metric": "lesion_f1"}, configuration=configuration)
    stop_in_epoch(trainer, epoch=2)
    cases = read_manifests(trainer)["round_01"]["cases"].values()
    scores = [sample["scores"] for case in cases for sample in case["samples"]]
    assert all(len(each) == 3 and 0 <= min(each) <= max(each) <= 1 for each in scores)
    assert any(chosen > rejected for _, chosen, rejected in scores)
    assert "lesion_f1 plain" in " ".join(read_log(trainer).split())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("distance", "a perfect one must have more"),
        ("undefined", "is nan for 0 voxels where"),
        ("failing", "fails on a training case"),
        ("missing", "cannot be imported"),
    ],
)
def test_a_metric_that_breaks_its_contract_stops_before_the_first_epoch(
    make_variant: MakeVariant, function: str, message: str
) -> None:
    trainer = make_variant({"metric": f"own_metrics:{function}"})
    with pytest.raises(InputError, match=message):
        trainer.run_training()
    assert trainer.current_epoch == 0


def test_a_slow_metric_is_a_notice(make_variant: MakeVariant) -> None:
    trainer = make_variant({"metric": "own_metrics:slow"})
    trainer.on_train_start()
    assert "NOTICE: metric='own_metrics:slow' takes 0." in " ".join(read_log(trainer).split())


@pytest.mark.parametrize(
    "name", ["NSD", "HD95", "ASD", "LesionF1", "LesionDice", "clDice", "FalseVolume"]
)
def test_the_trainer_of_each_metric_goes_behind_any_trainer(
    make_trainer: Callable[..., Any], name: str
) -> None:
    trainer = make_trainer(f"nnUNetTrainerTiny_MAPO_{name}", dataset=DATASET)
    trainer.on_train_start()
    assert type(trainer).__name__.startswith("nnUNetTrainerTiny")
    assert trainer.mapo.metric != "dice"
