"""`nnUNetv2_mapo preview` and the opening of trained models, on real trainings."""

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.tools.models import ModelError, open_model
from nnunetv2_mapo.tools.preview import look_at, space_evenly
from nnunetv2_mapo.tools.trainers import open_training_cases

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
STOCK, MAPO = "nnUNetTrainerTiny", "nnUNetTrainerTiny_MAPO_tiny"
DATASET, CPU = "Dataset990_Boxes", torch.device("cpu")
FINAL = "checkpoint_final.pth"


def train(make_trainer: MakeTrainer, name: str, configuration: str = "3d_fullres") -> Path:
    """Train fold 0; the model's folder."""
    trainer = make_trainer(name, configuration)
    trainer.run_training()
    return Path(trainer.output_folder_base)


def contents(*folders: Path) -> dict[Path, int]:
    """Time of the last change of everything in some folders."""
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_candidates_are_those_that_the_first_round_mined(
    make_trainer: MakeTrainer, configuration: str
) -> None:
    folder = train(make_trainer, MAPO, configuration)
    model = open_model(folder, 0, FINAL, CPU)
    before = contents(folder)
    # the reference's weights are those that the first round mines with
    weights = torch.load(folder / "fold_0/reference.pth", weights_only=True)
    model.network.load_state_dict(weights)
    cases = open_training_cases(model)
    samples = look_at(model, cases, cases.identifiers, (0.0, 0.2, 0.5), CPU)
    manifest = json.loads((folder / "fold_0/preferences/round_01/manifest.json").read_text())
    assert [len(slices) for slices in samples.values()] == [1 if "3d" in configuration else 12] * 4
    for case, found in samples.items():
        for sample, record in zip(found, manifest["cases"][case]["samples"], strict=True):
            assert sample.dice == pytest.approx(record["dice"], abs=1e-6)
    assert contents(folder) == before


@pytest.mark.parametrize("name", [STOCK, MAPO])
def test_preview_prints_and_leaves_results_and_data_as_they_are(
    make_trainer: MakeTrainer, boxes: Path, capsys: Any, name: str
) -> None:
    folder = train(make_trainer, name)
    before = contents(folder.parent, boxes / "preprocessed")
    capsys.readouterr()
    for model in (["-d", "990", "-c", "3d_fullres", "-tr", name], [str(folder)]):
        command = ["preview", *model, "--cases", "2", "--rates", "0", "0.2", "0.6"]
        assert main([*command, "-device", "cpu"]) == 0
        shown = capsys.readouterr().out
        assert f"{DATASET}, 3d_fullres, fold 0, {name}, checkpoint_final.pth" in shown
        assert "2 of 4 training cases: 2 samples with foreground\n" in shown
        rates = re.findall(r"^([\d.]+) +0\.\d{3} ", shown, flags=re.MULTILINE)
        # and the default's
        assert rates == ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.6"]
        assert re.search(
            r'^With pair="case" and the default rates .* \d of 2 samples', shown, re.MULTILINE
        )
    assert contents(folder.parent, boxes / "preprocessed") == before


@pytest.mark.parametrize("name", [STOCK, MAPO])
def test_previewed_trainer_and_its_control_train_by_the_printed_commands(
    make_trainer: MakeTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    name: str,
) -> None:
    folder = train(make_trainer, name)
    capsys.readouterr()
    assert main(["preview", str(folder), "--cases", "1", "--rates", "0", "0.9"]) == 0
    shown = capsys.readouterr().out
    code = re.search(r"^from nnunetv2_mapo import .*?^    \)$", shown, re.DOTALL | re.MULTILINE)
    assert code
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "previewed.py").write_text(code[0])
    paths = os.pathsep.join([os.environ["nnUNet_extTrainer"], str(tmp_path / "own")])
    monkeypatch.setenv("nnUNet_extTrainer", paths)
    commands = [shlex.split(line) for line in shown.splitlines() if "nnUNetv2_train" in line]
    trainers = [words[words.index("-tr") + 1] for words in commands]
    control = "nnUNetTrainerTiny"
    assert trainers == [f"{control}_MAPO", control, f"{control}_MAPO_Previewed", control]
    for command, dataset, configuration, fold, _, trainer, *options in commands:
        assert (command, dataset) == ("nnUNetv2_train", DATASET)
        assert options[:2] == ["-device", "cpu"]  # what the model was trained on
        if options[2:]:  # it is trained already, and would be begun anew
            assert (trainer, options[2:]) == (control, ["--val"])
            continue
        trained = make_trainer(trainer, configuration, fold=int(fold))
        trained.num_epochs, trained.num_iterations_per_epoch = 2, 1
        trained.run_training()
        assert Path(trained.output_folder, FINAL).is_file()


def test_slices_without_foreground_are_left_out(make_trainer: MakeTrainer, capsys: Any) -> None:
    train(make_trainer, STOCK, "2d")
    # each case has 12 slices, 9 of them with a box
    command = ["preview", "-d", DATASET, "-c", "2d", "-tr", STOCK, "--cases", "3", "-device", "cpu"]
    assert main([*command, "--rates", "0", "0.3"]) == 0
    assert (
        "27 samples with foreground (9 slices without any are left out)" in capsys.readouterr().out
    )


def test_training_cases_are_the_trainers(make_trainer: MakeTrainer) -> None:
    model = open_model(train(make_trainer, STOCK), 0, FINAL, CPU)
    for fold in (0, 1, 7, "all"):  # 7: a random split, because there are two folds
        training, _ = make_trainer(STOCK, fold=fold).get_tr_and_val_datasets()
        opened = open_training_cases(replace(model, fold=fold))
        assert opened.identifiers == list(training.identifiers)


def test_what_is_missing_or_damaged_is_named_before_anything_is_computed(
    make_trainer: MakeTrainer, boxes: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(make_trainer, STOCK)
    (folder / "fold_0/checkpoint_half.pth").write_bytes(b"half")
    torch.save(
        {"network_weights": {}, "current_epoch": 1}, folder / "fold_0/checkpoint_foreign.pth"
    )

    def explain(*arguments: str) -> str:
        assert main(["preview", *arguments, "-device", "cpu"]) == 1
        error: str = capsys.readouterr().err
        assert "case/s" not in error
        return error

    configuration = ("-c", "3d_fullres")
    model = ("-d", DATASET, *configuration, "-tr", STOCK)
    assert f"There is: {folder.name}." in explain("-d", DATASET, *configuration)
    assert f"There is: {folder.name}." in explain(str(folder.parent / "A__B__C"))
    assert "-d 123 is not one data set in" in explain("-d", "123", *configuration)
    assert f"There is: {DATASET}." in explain("-d", "Boxes", *configuration)
    assert f"There is: {DATASET}." in explain("-d", "Dataset989_None", *configuration)
    assert re.search(r"Fold 3 is not in .*\. There is: fold_0\.", explain(*model, "-f", "3"))
    best = explain(*model, "-chk", "checkpoint_worst.pth")
    assert "checkpoint_worst.pth is missing. There is: checkpoint_best.pth" in best
    for name in ("half", "foreign"):
        damaged = explain(*model, "-chk", f"checkpoint_{name}.pth")
        assert "Name another checkpoint with -chk." in damaged
    assert "increasing rates from 0 to below 1 are needed" in explain(*model, "--rates", "0.1")
    monkeypatch.setenv("nnUNet_preprocessed", str(boxes / "nowhere"))
    assert f"{DATASET} is not preprocessed for 3d_fullres" in explain(*model)
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "nnUNet_preprocessed is not set" in explain(*model)


@pytest.mark.parametrize("name", ["dataset.json", "plans.json"])
def test_damaged_files_of_the_model_folder_are_named(
    make_trainer: MakeTrainer, capsys: Any, name: str
) -> None:
    folder = train(make_trainer, STOCK)
    content = (folder / name).read_text()
    for damaged in (content[: len(content) // 2], "{}", "[]", "null"):
        (folder / name).write_text(damaged)
        assert main(["preview", str(folder), "-device", "cpu"]) == 1
        error = capsys.readouterr().err
        assert f"dataset.json or plans.json in {folder} is damaged" in error
        assert "Copy them anew from the data set's folder in nnUNet_preprocessed" in error


def test_a_trainer_that_is_not_installed_is_named(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(make_trainer, STOCK)
    monkeypatch.setenv("nnUNet_extTrainer", "")
    with pytest.raises(ModelError, match=f"Could not find requested nnunet trainer {STOCK}"):
        open_model(folder, 0, FINAL, CPU)


def test_a_missing_split_is_not_made_up(make_trainer: MakeTrainer, boxes: Path) -> None:
    model = open_model(train(make_trainer, STOCK), 0, FINAL, CPU)
    splits_file = boxes / "preprocessed" / DATASET / "splits_final.json"
    content = splits_file.read_text()
    try:
        splits_file.unlink()
        with pytest.raises(ModelError, match=r"splits_final\.json is missing: .* fold 0"):
            open_training_cases(model)
        assert not splits_file.exists()
        splits_file.write_text(json.dumps([{"train": ["case_9"], "val": ["case_0"]}]))
        with pytest.raises(InputError, match=r"not among the preprocessed cases: \['case_9'\]"):
            open_training_cases(model)
        for damaged in (content[: len(content) // 2], "[{}]", "null"):
            splits_file.write_text(damaged)
            with pytest.raises(ModelError, match=r"splits_final\.json, or .* Restore the split"):
                open_training_cases(model)
    finally:
        splits_file.write_text(content)


def test_training_cases_are_those_of_the_trainers_own_split(
    make_trainer: MakeTrainer, boxes: Path, capsys: Any
) -> None:
    trainer = make_trainer("nnUNetTrainerOwnSplit_MAPO_tiny")
    trainer.run_training()
    folder = Path(trainer.output_folder_base)
    splits_file = boxes / "preprocessed" / DATASET / "splits_final.json"
    splits_file.rename(splits_file.with_name("moved"))  # nothing but nnU-Net's own split reads it
    before = contents(folder.parent, boxes / "preprocessed")
    try:
        capsys.readouterr()
        cases = open_training_cases(open_model(folder, 0, FINAL, CPU))
        assert contents(folder.parent, boxes / "preprocessed") == before
        assert capsys.readouterr().out == ""
    finally:
        splits_file.with_name("moved").rename(splits_file)
    assert cases.identifiers == ["case_1", "case_3", "case_5"]


def test_a_split_that_has_changed_since_the_training_is_refused(
    make_trainer: MakeTrainer, boxes: Path, capsys: Any
) -> None:
    trainer = make_trainer(STOCK)
    trainer.run_training()
    trainer.perform_actual_validation()
    model = open_model(Path(trainer.output_folder_base), 0, FINAL, CPU)
    open_training_cases(model)
    splits_file = boxes / "preprocessed" / DATASET / "splits_final.json"
    content = splits_file.read_text()
    names = [f"case_{number}" for number in range(6)]
    changed = "The split of fold 0 has changed since the training: "
    try:
        splits_file.write_text(json.dumps([{"train": names[2:], "val": names[:2]}]))
        told = f"{changed}case_4 is a training case now, by .*summary.json it was not one. Restore"
        with pytest.raises(ModelError, match=told):
            open_training_cases(model)
        (model.folder / "fold_0/validation/summary.json").unlink()
        open_training_cases(model)  # nothing is known of the training
        origin = {"round": 1, "settings": MAPOConfig().to_dict()}
        mined = Round(model.folder / "fold_0/preferences/round_01", origin)
        mined.folder.mkdir(parents=True)
        mined.write_manifest({name: [] for name in names[:4]}, ())
        told = f"{changed}case_0 is no training case now, by .*manifest.json it was one. Restore"
        with pytest.raises(ModelError, match=told):
            open_training_cases(model)
        (mined.folder / "manifest.json").write_text("{")
        assert main(["preview", str(model.folder), "-device", "cpu"]) == 1
        assert "manifest.json is damaged. Delete it" in capsys.readouterr().err
    finally:
        splits_file.write_text(content)


def test_cases_are_spaced_evenly() -> None:
    assert space_evenly("abcdefgh", 3) == ["a", "c", "f"]
    assert space_evenly("abc", 8) == ["a", "b", "c"]
