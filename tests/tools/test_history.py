from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from metric_files import write_training

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.schedule import Stage
from nnunetv2_mapo.tools.history import (
    HistoryError,
    describe_pairs,
    has_no_pairs,
    read_history,
)

SETTINGS = MAPOConfig(num_rounds=2, warmup_epochs=2).to_dict()


def write_checkpoint(fold: Path, name: str = "checkpoint_final.pth", **changed: Any) -> None:
    plans = {
        "configurations": {
            "2d": {"patch_size": [8, 8], "architecture": {}, "batch_dice": False},
            "child": {"inherits_from": "2d"},
        }
    }
    checkpoint = {
        "network_weights": {"w": torch.zeros(2)},
        "current_epoch": 3,
        "trainer_name": "nnUNetTrainer_MAPO",
        "init_args": {"plans": plans, "configuration": "child"},
        "logging": {
            "mean_fg_dice": [0.1, 0.2, 0.3],
            # Half an hour passes between the first epoch and the second.
            "epoch_start_timestamps": [100.0, 1910.0, 1920.0],
            "epoch_end_timestamps": [110.0, 1920.0, 1935.0],
        },
        "mapo": {"config": SETTINGS},
        **changed,
    }
    fold.mkdir(exist_ok=True)
    torch.save(checkpoint, fold / name)


def test_a_break_between_two_epochs_is_not_training(tmp_path):
    write_checkpoint(tmp_path)
    history = read_history(tmp_path)
    assert history.training_s == 10 + 10 + 15
    assert history.num_epochs_done == history.num_epochs == 3
    assert history.logged["mean_fg_dice"] == [0.1, 0.2, 0.3]
    assert history.config == SETTINGS


def test_a_training_under_way_has_its_whole_length_and_stages(tmp_path):
    write_checkpoint(tmp_path, "checkpoint_latest.pth")
    (tmp_path / "debug.json").write_text(json.dumps({"num_epochs": "8"}))
    history = read_history(tmp_path)
    assert (history.num_epochs_done, history.num_epochs) == (3, 8)
    assert history.stages == [Stage(0, 0, 2), Stage(1, 2, 5), Stage(2, 5, 8)]


def test_a_latest_checkpoint_is_of_the_latest_training_and_a_final_one_of_an_earlier(tmp_path):
    for name in ("best", "final", "latest"):
        write_checkpoint(tmp_path, f"checkpoint_{name}.pth")
        assert read_history(tmp_path).checkpoint.name == f"checkpoint_{name}.pth"


LINE = "2026-01-01 00:00:00.0: {}\n"


def write_log(fold: Path, number: int, *texts: str) -> None:
    lines = [LINE.format(text) for text in texts]
    (fold / f"training_log_2025_{8 + number}_1_9_00_00.txt").write_text("".join(lines))


def mined(number: int, seconds: float) -> str:
    return f"MAPO: round {number}: 3 pairs / 4 samples, Dice 0.5; 4 cases mined in {seconds} s"


def test_mining_is_summed_over_the_logs_of_all_starts(tmp_path):
    write_checkpoint(tmp_path)
    write_log(tmp_path, 1, "Epoch 0", mined(1, 2.5), "Epoch 1")
    write_log(tmp_path, 2, mined(1, 0.5), "Epoch 1", mined(2, 10.0), "Epoch 2")
    write_log(tmp_path, 3, "predicting case_0")  # a validation
    history = read_history(tmp_path)
    assert history.mining_s == 13
    assert history.num_starts == 2


def test_logs_of_an_earlier_training_do_not_count(tmp_path):
    write_checkpoint(tmp_path)
    write_log(tmp_path, 1, "Epoch 0", mined(1, 100), "Epoch 1")
    write_log(tmp_path, 2, "Epoch 0", mined(1, 2), "Epoch 1")
    history = read_history(tmp_path)
    assert history.mining_s == 2
    assert history.num_starts == 1


def test_a_stock_training_is_one_stage_without_settings(tmp_path):
    write_checkpoint(tmp_path, mapo={})
    history = read_history(tmp_path)
    assert history.config is None
    assert history.stages == [Stage(0, 0, 3)]


def test_settings_of_another_version_do_not_matter(tmp_path):
    write_checkpoint(tmp_path, mapo={"config": {**SETTINGS, "of_a_later_version": 1}})
    assert read_history(tmp_path).stages == [Stage(0, 0, 2), Stage(1, 2, 3)]


@pytest.mark.parametrize("damaged", ["", "[]", '{"num_epochs": null}'])
def test_without_a_usable_debug_json_the_epochs_done_count(tmp_path, damaged):
    write_checkpoint(tmp_path)
    (tmp_path / "debug.json").write_text(damaged)
    assert read_history(tmp_path).num_epochs == 3


def test_a_fold_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(HistoryError, match="has no checkpoint"):
        read_history(tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    with pytest.raises(HistoryError, match=r"checkpoint_final.pth is damaged"):
        read_history(tmp_path)


def test_pairs_of_all_folds_are_summed_for_each_round(tmp_path):
    config = MAPOConfig(num_rounds=2, warmup_epochs=2)
    write_training(tmp_path / "fold_0", config, pairs=(24, 0))
    write_training(tmp_path / "fold_1", config, pairs=(6, 1), num_samples=20)
    histories = [read_history(tmp_path / f"fold_{fold}") for fold in (0, 1)]
    assert describe_pairs(histories) == "30, 1 of 500"
    assert not has_no_pairs(histories)
    assert describe_pairs([*histories, None]) == "unknown"


def test_without_samples_in_the_log_the_pairs_are_told_alone(tmp_path):
    config = MAPOConfig(num_rounds=2, warmup_epochs=2)
    write_training(tmp_path, config, pairs=(24, 7), num_samples=float("nan"))
    assert describe_pairs([read_history(tmp_path)]) == "24, 7"


def test_no_pairs_in_any_round_is_told_from_no_rounds(tmp_path):
    config = MAPOConfig(num_rounds=2, warmup_epochs=2)
    write_training(tmp_path / "fold_0", config, pairs=(0, 0))
    write_training(tmp_path / "fold_1", replace(config, num_rounds=0))
    none, control = (read_history(tmp_path / f"fold_{fold}") for fold in (0, 1))
    assert (describe_pairs([none]), has_no_pairs([none])) == ("no pairs: a control", True)
    assert (describe_pairs([control]), has_no_pairs([control])) == ("none wanted", False)
