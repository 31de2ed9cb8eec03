from __future__ import annotations

import zipfile

import pytest
import torch

from nnunetv2_mapo.export import find_folds, plain_checkpoint, write_zip
from nnunetv2_mapo.trained_model import ModelError

FINAL = "checkpoint_final.pth"


def make_folds(folder, *names, without=()):
    for name in names:
        (folder / name).mkdir()
        if name not in without:
            (folder / name / FINAL).touch()


def test_a_plain_checkpoint_has_another_trainer_and_nothing_of_mapo():
    kept = {
        "network_weights": {"a": torch.ones(2)},
        "optimizer_state": {"state": {}},
        "current_epoch": 6,
        "init_args": {"configuration": "2d"},
    }
    checkpoint = {
        **kept,
        "trainer_name": "nnUNetTrainer_MAPO",
        "logging": {"lrs": [0.1], "loss/dpo": [0.7], "mining/pairs": [3.0]},
        "mapo": {"config": {}},
    }
    plain = plain_checkpoint(checkpoint, "nnUNetTrainer")
    assert plain == {**kept, "trainer_name": "nnUNetTrainer", "logging": {"lrs": [0.1]}}
    assert "mapo" in checkpoint  # it stays as it was


def test_every_fold_is_exported_in_order(tmp_path):
    make_folds(tmp_path, "fold_10", "fold_2", "fold_all", "fold_old", "crossval")
    assert find_folds(tmp_path, FINAL, None) == (2, 10, "all")


def test_chosen_folds_are_taken_once_each_whatever_the_others_have(tmp_path):
    make_folds(tmp_path, "fold_0", "fold_1", without=["fold_1"])
    assert find_folds(tmp_path, FINAL, [0, 0]) == (0,)


def test_a_fold_without_the_checkpoint_is_named(tmp_path):
    make_folds(tmp_path, "fold_0", "fold_1", without=["fold_1"])
    with pytest.raises(ModelError, match=rf"fold_1 in .* has no {FINAL}.* with -f, or another"):
        find_folds(tmp_path, FINAL, None)


def test_a_folder_without_folds_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="is no model folder"):
        find_folds(tmp_path, FINAL, None)
    with pytest.raises(ModelError, match="is no model folder"):
        find_folds(tmp_path / "missing", FINAL, None)


def test_a_zip_file_holds_the_files_relative_to_the_folder(tmp_path):
    (tmp_path / "in/a/b").mkdir(parents=True)
    (tmp_path / "in/a/b/file").write_text("content")
    write_zip(tmp_path / "in", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["a/b/file"]
        assert archive.read("a/b/file") == b"content"
