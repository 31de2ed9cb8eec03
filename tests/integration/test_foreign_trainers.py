"""Trainers of third parties: they work with MAPO, or are refused before the first epoch."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_mapo.guards.rehearsal import TrainerError
from nnunetv2_mapo.method.store import read_rounds
from nnunetv2_mapo.support.device import read_state
from nnunetv2_mapo.support.files import hash_weights

MakeTrainer = Callable[..., Any]


def read_log(trainer: Any) -> str:
    return "".join(path.read_text() for path in Path(trainer.output_folder).glob("*.txt"))


def test_a_trainer_that_reads_dataset_target_and_loss_is_trained(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("ForeignReader_MAPO_tiny")
    trainer.run_training()
    assert trainer._summary.num_pairs > 0
    logged = trainer.logger.local_logger.my_fantastic_logging
    warmup = trainer.schedule.stages[0].end_epoch
    # also in the last epoch, whose loss is another one
    assert all(math.isfinite(value) for value in logged["loss/dpo"][warmup:])
    assert all(value > 0 for value in logged["loss/dpo"][warmup:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ForeignNoLoss", "train_step of ForeignNoLoss_MAPO_tiny does not call self.loss"),
        ("ForeignDatasets", r"hold no preferences.* self.get_tr_and_val_datasets\(\)"),
        ("ForeignCrop", r"an output of shape \(2, 3, 8, 16, 8\).* 2 patches of 2048 voxels"),
        ("ForeignOneOutput", r"The network has one output, .* add to it(?s:.*)supervision = False"),
        (
            "ForeignNoSwitch",
            r"attribute 'decoder'.* one output, .* add to it(?s:.*)supervision = False",
        ),
    ],
)
def test_what_the_preference_stage_would_refuse_is_refused_before_the_first_epoch(
    make_trainer: MakeTrainer, name: str, message: str
) -> None:
    with pytest.raises(TrainerError, match=message):
        make_trainer(f"{name}_MAPO_tiny").on_train_start()


def test_a_rehearsed_step_leaves_nothing_behind(make_trainer: MakeTrainer) -> None:
    trainers = [make_trainer("nnUNetTrainerBN_MAPO_tiny") for _ in range(2)]
    steps = []
    trainers[1]._rehearse = lambda: None
    for trainer in trainers:
        trainer.num_epochs = 3
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  # nnU-Net draws from it
        take = trainer.optimizer.step if trainer.was_initialized else None
        assert take is None
        step = type(trainer).train_step
        trainer.train_step = lambda batch, trainer=trainer, step=step: (
            steps.append(trainer._mined) or step(trainer, batch)
        )
        trainer.on_train_start()
        del trainer.train_step
    rehearsed, plain = trainers
    [planted] = steps  # the rehearsed step, of one of the two
    assert planted is not None
    assert hash_weights(rehearsed.network.state_dict()) == hash_weights(plain.network.state_dict())
    assert not rehearsed.optimizer.state
    assert vars(rehearsed).keys() == vars(plain).keys() - {"_rehearse"}
    assert rehearsed._mined is None is rehearsed._reference
    assert not rehearsed.dropout.switch.active
    assert str(read_state(rehearsed.device)) == str(read_state(plain.device))
    assert not Path(rehearsed.output_folder, "preferences").exists()
    first, second = (next(trainer.dataloader_train)["data"] for trainer in trainers)
    assert first.shape == second.shape


def test_a_split_that_never_asks_nnunet_is_used(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("nnUNetTrainerOwnSplit_MAPO_tiny")
    trainer.on_train_start()
    training, validation = trainer.get_tr_and_val_datasets()
    assert list(training.identifiers) == ["case_1", "case_3", "case_5"]
    assert list(validation.identifiers) == ["case_0", "case_2", "case_4"]


# The length of the training changes ---------------------------------------------------------------


class Killed(Exception):  # noqa: N818  # no error
    """The training ends here, as if it were killed."""


def train(
    make_trainer: MakeTrainer, length: int, *, stop_after: int = 999, **arguments: Any
) -> Any:
    """Train `length` epochs, or as many as come before it is killed."""
    trainer = make_trainer("ForeignLength_MAPO_tiny", **arguments)
    trainer.save_every = 1
    if not trainer.was_initialized:  # one that is continued has its length
        trainer.num_epochs = length
    start = trainer.on_epoch_start

    def on_epoch_start() -> None:
        if trainer.current_epoch == stop_after:
            raise Killed
        start()

    trainer.on_epoch_start = on_epoch_start
    with contextlib.suppress(Killed):
        trainer.run_training()
    return trainer


def continue_to(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, trainer: Any, length: int
) -> Any:
    monkeypatch.setattr(type(trainer), "length", length)
    return train(make_trainer, length, continue_training=True)


def policies_of(trainer: Any) -> dict[int, str]:
    rounds = read_rounds(Path(trainer.output_folder))
    return {each.origin["round"]: each.origin["policy"] for each in rounds}


@pytest.mark.parametrize("num_done", [3, 4, 6])  # in round 1, before round 2, finished
def test_a_longer_training_never_goes_back_a_round(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, num_done: int
) -> None:
    trainer = train(make_trainer, 6, stop_after=num_done)  # 2 epochs of warm-up, 2 rounds of 2
    begun, before = trainer._begun, policies_of(trainer)
    assert begun.first_epochs == (2, 4)[: begun.round]
    continued = continue_to(make_trainer, monkeypatch, trainer, 10)
    assert continued.current_epoch == 10
    assert continued._begun.first_epochs[: begun.round] == begun.first_epochs
    after = policies_of(continued)
    assert after.keys() == {1, 2}
    assert {number: after[number] for number in before} == before  # mined once
    assert continued._begun.policy == after[2]
    notice = "another length than before, which was: warm-up in epochs 0-1, round 1 in 2-3, round 2"
    assert notice in read_log(continued)
    stages = continued.schedule.stages
    assert [stage.round for stage in stages] == [0, 1, 2]
    assert stages[-1].end_epoch == 10


def test_a_shorter_training_leaves_no_round_out(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = train(make_trainer, 12, stop_after=8)  # 5 epochs of warm-up, rounds of 4 and 3
    assert trainer._begun.first_epochs == (5,)
    continued = continue_to(make_trainer, monkeypatch, trainer, 9)
    assert continued._begun.first_epochs == (5, 8)
    assert policies_of(continued).keys() == {1, 2}
