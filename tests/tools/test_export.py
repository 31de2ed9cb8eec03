from __future__ import annotations

import json

import torch

from nnunetv2_mapo.tools.export import copy_file, plain_checkpoint


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
