"""The losses of the paper's table 5, each plain and with MAPO, through nnU-Net's own training."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from nnunetv2_mapo import MAPOTrainer
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.zoo.losses import TargetFormat

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning"),
]
MakeTrainer = Callable[..., Any]
OURS = ("FocalLoss", "DiceFocalLoss", "LovaszLoss", "HausdorffLoss")
ALL = ("", "CELoss", "DiceLoss", *OURS)  # the first is nnU-Net's default, Dice + CE


def make(make_trainer: MakeTrainer, name: str, **options: Any) -> Any:
    """A trainer of two epochs of two steps; fold 1 has a single training case."""
    trainer = make_trainer(f"nnUNetTrainer{name}", fold=1, **options)
    trainer.num_epochs = trainer.num_iterations_per_epoch = 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    return trainer


def train(trainer: Any) -> None:
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert len(logged["train_losses"]) == 2
    assert all(math.isfinite(loss) for loss in logged["train_losses"])


def train_with_mapo(trainer: Any) -> None:
    train(trainer)
    assert isinstance(trainer, MAPOTrainer)
    assert trainer._summary.num_pairs > 0
    assert math.isfinite(trainer.logger.get_value("loss/dpo", -1))


def relabel(trainer: Any, labels: dict[str, Any], **description: Any) -> Any:
    """Give the labels of the boxes another meaning, before anything is made of it."""
    trainer.dataset_json = {**trainer.dataset_json, "labels": labels, **description}
    trainer.label_manager = trainer.plans_manager.get_label_manager(trainer.dataset_json)
    return trainer


@pytest.mark.parametrize("name", ALL)
def test_each_loss_trains_plain(make_trainer: MakeTrainer, name: str) -> None:
    trainer = make(make_trainer, name, configuration="2d")
    train(trainer)
    assert not isinstance(trainer, MAPOTrainer)


@pytest.mark.parametrize("name", ALL)
def test_each_loss_trains_with_mapo(make_trainer: MakeTrainer, name: str) -> None:
    train_with_mapo(make(make_trainer, f"{name}_MAPO_tiny", configuration="3d_fullres"))


@pytest.mark.parametrize("name", OURS)
def test_each_loss_trains_with_regions(make_trainer: MakeTrainer, name: str) -> None:
    trainer = make(make_trainer, f"{name}_MAPO_tiny", configuration="2d")
    labels = {"background": 0, "whole": [1, 2], "small": [2]}
    train_with_mapo(relabel(trainer, labels, regions_class_order=[1, 2]))
    assert trainer.labels.regions == ((1, 2), (2,))


@pytest.mark.parametrize("name", OURS)
def test_the_ignore_label_arrives_or_is_refused(make_trainer: MakeTrainer, name: str) -> None:
    labels = {"background": 0, "large": 1, "small": 2, "ignore": 3}
    trainer = relabel(make(make_trainer, name), labels)
    if name == "HausdorffLoss":
        with pytest.raises(InputError, match="cannot be used with the ignore label"):
            trainer.initialize()
        return
    trainer.initialize()
    [targets] = {m.target_format for m in trainer.loss.modules() if hasattr(m, "target_format")}
    assert targets == TargetFormat(has_regions=False, ignore_label=3)


@pytest.mark.parametrize("name", OURS)
def test_resolutions_have_nnunets_own_weights(make_trainer: MakeTrainer, name: str) -> None:
    ours, stock = make(make_trainer, name), make(make_trainer, "")
    for is_ddp in (False, True):  # nnU-Net lets no weight be 0 with several ranks
        ours.is_ddp = stock.is_ddp = is_ddp
        loss = ours._build_loss()
        assert isinstance(loss, DeepSupervisionWrapper)
        assert loss.weight_factors == stock._build_loss().weight_factors
        assert (loss.weight_factors[-1] == 0) != is_ddp
    ours.enable_deep_supervision = False
    assert not isinstance(ours._build_loss(), DeepSupervisionWrapper)


@pytest.mark.parametrize("name", OURS)
def test_nnunets_dice_setting_arrives(make_trainer: MakeTrainer, name: str) -> None:
    trainer = make(make_trainer, name, configuration="2d")
    loss = trainer._build_loss().loss
    assert trainer.configuration_manager.batch_dice
    settings = {
        "FocalLoss": lambda: True,  # has none
        "DiceFocalLoss": lambda: loss.dice.batch_dice,
        "LovaszLoss": lambda: loss.batch_dice,
        "HausdorffLoss": lambda: loss.stock.dc.batch_dice,
    }
    assert settings[name]()


@pytest.mark.parametrize("name", OURS)
def test_one_step_of_each_loss_lowers_it_on_its_own_batch(
    make_trainer: MakeTrainer, name: str
) -> None:
    trainer = make(make_trainer, name)
    trainer.on_train_start()
    trainer.on_epoch_start()
    batch = next(trainer.dataloader_train)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p).all() for p in trainer.network.parameters())
