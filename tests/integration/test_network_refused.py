"""The network of a training: where its dropout sits, and what is refused before the first epoch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_mapo.guards.network import NetworkError

MakeTrainer = Callable[..., Any]


def test_a_training_drops_where_its_settings_say(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    patterns = {"dropout_exclude": ("decoder",), "dropout_include": ("encoder.stages.0",)}
    trainer.mapo = replace(trainer.mapo, **patterns)
    trainer.on_train_start()
    assert "encoder.stages.0" in trainer.dropout.sites
    assert "encoder.stages.0.0.convs.0.conv" in trainer.dropout.sites
    assert not any(name.startswith("decoder.") for name in trainer.dropout.sites)
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("*.txt"))
    assert f"dropout after {len(trainer.dropout.sites)} layers" in log


def test_a_pattern_that_fits_nothing_stops_the_training(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.mapo = replace(trainer.mapo, dropout_exclude=("decodr",))
    with pytest.raises(ValueError, match=r"'decodr' fits no module .* mean .*'decoder'"):
        trainer.on_train_start()


def test_a_network_that_does_not_fit_is_refused_before_the_first_epoch(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer()
    trainer.initialize()
    heads = trainer.network.decoder.seg_layers
    heads[-1] = nn.Sequential(heads[-1], nn.Softmax(1))
    with pytest.raises(NetworkError, match="returns probabilities"):
        trainer.on_train_start()


def test_the_check_of_the_network_changes_no_random_number(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.initialize()
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    trainer._check_network()
    assert torch.equal(torch.get_rng_state(), expected)
    assert trainer.network.decoder.deep_supervision
