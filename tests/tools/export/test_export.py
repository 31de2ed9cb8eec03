from __future__ import annotations

import json

import pytest
import torch

from nnunetv2_mapo.tools.export.export import Export, copy_file, find_folds, plain_checkpoint
from nnunetv2_mapo.tools.models import ModelError


def make_folds(folder, *names):
    for name in names:
        (folder / name).mkdir()


def test_a_plain_checkpoint_has_another_trainer_and_nothing_of_mapo_and_no_names_of_cases():
    kept = {
        "network_weights": {"a": torch.ones(2)},
        "optimizer_state": {"state": {}},
        "current_epoch": 6,
    }
    labels = {"labels": {"background": 0}}
    cases = {"case_0": {"images": ["/home/me/case_0.nii.gz"]}}
    checkpoint = {
        **kept,
        "init_args": {"configuration": "2d", "dataset_json": {**labels, "dataset": cases}},
        "trainer_name": "nnUNetTrainer_MAPO",
        "logging": {"lrs": [0.1], "loss/dpo": [0.7], "mining/pairs": [3.0]},
        "mapo": {"config": {}},
    }
    assert plain_checkpoint(checkpoint, "nnUNetTrainer") == {
        **kept,
        "init_args": {"configuration": "2d", "dataset_json": labels},
        "trainer_name": "nnUNetTrainer",
        "logging": {"lrs": [0.1]},
    }
    assert "mapo" in checkpoint  # it stays as it was
    assert checkpoint["init_args"]["dataset_json"]["dataset"] == cases


def test_every_fold_with_a_number_is_exported(tmp_path):
    make_folds(tmp_path, "fold_10", "fold_2", "fold_all", "fold_old", "crossval")
    assert set(find_folds(tmp_path)) == {2, 10}


def test_fold_all_is_exported_if_it_is_the_only_one(tmp_path):
    make_folds(tmp_path, "fold_all", "fold_old")
    assert find_folds(tmp_path) == ["all"]


def test_a_folder_without_folds_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="is no model folder"):
        find_folds(tmp_path)
    with pytest.raises(ModelError, match="is no model folder"):
        find_folds(tmp_path / "missing")


def test_copied_results_have_no_names_of_cases(tmp_path):
    means = {"foreground_mean": {"Dice": 0.5}, "mean": {"1": {"Dice": 0.5}}}
    per_case = [{"prediction_file": "/home/me/case_0.nii.gz"}]
    (tmp_path / "summary.json").write_text(json.dumps({**means, "metric_per_case": per_case}))
    copy_file(tmp_path / "summary.json", tmp_path / "out/validation/summary.json")
    assert json.loads((tmp_path / "out/validation/summary.json").read_text()) == means


def test_other_files_are_copied_as_they_are_and_are_empty_if_they_are_missing(tmp_path):
    (tmp_path / "postprocessing.pkl").write_bytes(b"content")
    for name in ("postprocessing.pkl", "progress.png", "summary.json"):
        copy_file(tmp_path / name, tmp_path / "out" / name)
    assert (tmp_path / "out/postprocessing.pkl").read_bytes() == b"content"
    assert (tmp_path / "out/progress.png").read_bytes() == b""
    assert (tmp_path / "out/summary.json").read_bytes() == b"{}"


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "summary.json").write_text('{"mean": ')
    with pytest.raises(ModelError, match=r"summary\.json is damaged"):
        copy_file(tmp_path / "summary.json", tmp_path / "out/summary.json")


def test_nnunet_s_commands_name_the_exported_model(tmp_path):
    names = ("Dataset990_Boxes", "nnUNetTrainer", "nnUNetPlans", "2d")
    export = Export(tmp_path, [0, "all"], "checkpoint_best.pth", *names)
    assert export.target == "Dataset990_Boxes/nnUNetTrainer__nnUNetPlans__2d"
    assert export.options == (
        "-d Dataset990_Boxes -c 2d -tr nnUNetTrainer -p nnUNetPlans -f 0 all "
        "-chk checkpoint_best.pth"
    )
