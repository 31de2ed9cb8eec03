from __future__ import annotations

import zipfile

import pytest
import torch

from nnunetv2_mapo.tools.export.export import (
    ModelExport,
    copy_model_files,
    export_fold,
    find_folds,
    open_fold,
    plain_checkpoint,
    plan_export,
    write_zip,
)
from nnunetv2_mapo.tools.export.plain_trainer import PlainTrainer
from nnunetv2_mapo.tools.models import ModelError

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


def test_every_fold_with_a_number_is_exported_in_order(tmp_path):
    make_folds(tmp_path, "fold_10", "fold_2", "fold_all", "fold_old", "crossval")
    assert find_folds(tmp_path, FINAL, None) == (2, 10)


def test_fold_all_does_not_have_to_be_finished_where_it_is_left_out(tmp_path):
    make_folds(tmp_path, "fold_0", "fold_all", without=["fold_all"])
    assert find_folds(tmp_path, FINAL, None) == (0,)


def test_fold_all_is_exported_if_it_is_the_only_one_or_named(tmp_path):
    make_folds(tmp_path, "fold_all")
    assert find_folds(tmp_path, FINAL, None) == ("all",)
    assert find_folds(tmp_path, FINAL, ["all", 2, 0]) == (0, 2, "all")


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


def make_export(source, folds):
    plain = PlainTrainer("nnUNetTrainer", is_shipped=True)
    return ModelExport(source, "T_MAPO", plain, "D", "P", "2d", folds, FINAL, is_cascade=False)


def test_only_the_crossvalidation_of_exactly_the_exported_folds_goes_along(tmp_path):
    for folds in ("0", "0_1", "0_1_2"):
        folder = tmp_path / f"source/crossval_results_folds_{folds}"
        folder.mkdir(parents=True)
        (folder / "postprocessing.pkl").touch()
    copy_model_files(make_export(tmp_path / "source", (0, 1)), tmp_path / "out")
    [copied] = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert copied == tmp_path / "out/crossval_results_folds_0_1/postprocessing.pkl"


def test_what_cannot_be_read_is_not_taken_for_what_cannot_be_written(tmp_path, monkeypatch):
    def refuse(_):
        message = "not for you"
        raise PermissionError(message)

    (tmp_path / "plans.json").touch()
    export = make_export(tmp_path, (0,))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", refuse)
        with pytest.raises(ModelError, match=r"plans\.json cannot be read: not for you"):
            copy_model_files(export, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.is_dir", refuse)
        with pytest.raises(ModelError, match=f"{tmp_path.name} cannot be read: not for you"):
            plan_export(tmp_path, [0], FINAL)
        with pytest.raises(ModelError, match=f"{tmp_path.name} cannot be read: not for you"):
            open_fold(export, 0, torch.device("cpu"))
    (tmp_path / "out").touch()
    with pytest.raises(FileExistsError):  # not a ModelError
        copy_model_files(export, tmp_path / "out")


def test_the_origin_of_a_fine_tuned_model_is_exported_without_its_path(tmp_path):
    checkpoint = {
        "network_weights": {"a": torch.ones(2)},
        "current_epoch": 6,
        "logging": {},
        "mapo": {
            "base": {"path": "/home/me/a.pth", "fold": 0, "base": {"path": "/b.pth", "fold": 1}}
        },
    }
    (tmp_path / "fold_0").mkdir()
    torch.save(checkpoint, tmp_path / "fold_0" / FINAL)
    record = export_fold(make_export(tmp_path, (0,)), 0, tmp_path / "out")
    assert record["base"] == {"fold": 0, "base": {"fold": 1, "base": None}}
    assert record["mapo"] is None
