"""`nnUNetv2_mapo export`, and prediction with what it makes by nnU-Net without this package."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disk import full_disk
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.progress import register_keys
from nnunetv2_mapo.tools import export

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
DATASET, FINAL = "Dataset990_Boxes", "checkpoint_final.pth"
MAPO, OWN = "nnUNetTrainerTiny_MAPO_tiny", "nnUNetTrainerOwnNetwork_MAPO_tiny"
SHAPE = (1, 12, 20, 20)

STOCK_PREDICTION = """
import sys
sys.modules["nnunetv2_mapo"] = None  # to Python: not installed
import numpy as np, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, image, output = sys.argv[1:]
predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False)
predictor.initialize_from_trained_model_folder(model, None)
np.save(output, predictor.predict_single_npy_array(np.load(image), {"spacing": [1, 1, 1]}))
"""


@pytest.fixture
def make_model(make_trainer: MakeTrainer, boxes: Path) -> Callable[..., Path]:
    """Makes the folder of a model whose folds have the weights that they were initialised with."""

    def make(name: str = MAPO, configuration: str = "3d_fullres", folds: Any = (0,)) -> Path:
        for fold in folds:
            trainer = make_trainer(name, configuration, fold=fold)
            trainer.initialize()
            register_keys(trainer.logger.local_logger.my_fantastic_logging, 0)
            trainer.save_checkpoint(str(Path(trainer.output_folder) / FINAL))
        folder = Path(trainer.output_folder_base)
        shutil.copy(boxes / f"preprocessed/{DATASET}/nnUNetPlans.json", folder / "plans.json")
        shutil.copy(boxes / f"preprocessed/{DATASET}/dataset.json", folder)
        return folder

    return make


def run(*arguments: Any) -> int:
    return main(["export", "-device", "cpu", *map(str, arguments)])


def fail(capsys: pytest.CaptureFixture[str], output: Path, *arguments: Any) -> str:
    """Message of an export that fails, and leaves nothing beside its output."""
    before = sorted(output.parent.iterdir())
    capsys.readouterr()
    assert run(*arguments, "-o", output) == 1
    assert sorted(output.parent.iterdir()) == before
    return capsys.readouterr().err


def predict_stock(model: Path, scratch: Path) -> np.ndarray:
    image, output = scratch / "image.npy", scratch / "segmentation.npy"
    np.save(image, make_image())
    subprocess.run(
        [sys.executable, "-c", STOCK_PREDICTION, str(model), str(image), str(output)],
        env={**os.environ, "nnUNet_extTrainer": ""},
        check=True,
    )
    segmentation: np.ndarray = np.load(output)
    return segmentation


def make_image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def find_mapo(content: Any, path: str = "") -> list[str]:
    """Where a checkpoint has the word in any case."""
    if isinstance(content, dict):
        keys = [f"{path}/{key}" for key in content if "mapo" in str(key).lower()]
        return [
            *keys,
            *(hit for key, v in content.items() for hit in find_mapo(v, f"{path}/{key}")),
        ]
    if isinstance(content, (list, tuple)):
        return [hit for number, v in enumerate(content) for hit in find_mapo(v, f"{path}/{number}")]
    return [path] if "mapo" in f"{type(content)} {content}".lower() else []


def test_a_trained_model_is_installed_and_predicts_the_same_without_this_package(
    make_trainer: MakeTrainer,
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = make_trainer(MAPO)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = make_model(folds=[1])  # fold 1 is not trained and not validated
    (folder / "fold_0/progress.png").touch()  # not drawn in tests, but exported
    for folds in ("0", "0_1"):
        (folder / f"crossval_results_folds_{folds}").mkdir()
        for name in ("postprocessing.pkl", "postprocessing.json", "summary.json", "case_0.nii.gz"):
            (folder / f"crossval_results_folds_{folds}" / name).touch()
    archive = tmp_path / "a new one/model.zip"
    capsys.readouterr()
    assert run(folder, "-o", archive, "-f", "1", "0") == 0  # are named in another order
    assert [path.name for path in archive.parent.iterdir()] == ["model.zip"]

    shown, model = capsys.readouterr().out, f"{DATASET}/nnUNetTrainer__nnUNetPlans__3d_fullres"
    assert shown.count("logits equal bit for bit") == 2
    assert f"nnUNetv2_install_pretrained_model_from_zip '{archive}'" in shown
    command = f"nnUNetv2_predict -d {DATASET} -c 3d_fullres -tr nnUNetTrainer -p nnUNetPlans -f 0 1"
    assert f"{command} -chk {FINAL} -i INPUT_FOLDER" in shown
    assert f"overwrites a model of the same name in that nnUNet_results: {model}" in shown
    assert "install it there" not in shown

    installed = tmp_path / "installed"
    monkeypatch.setenv("nnUNet_results", str(installed))
    install_model_from_zip_file(str(archive))
    files = {str(p.relative_to(installed / model)) for p in installed.rglob("*") if p.is_file()}
    crossval = {"postprocessing.pkl", "postprocessing.json", "summary.json"}
    assert files == {
        "plans.json", "dataset.json", "dataset_fingerprint.json",
        *(f"crossval_results_folds_0_1/{name}" for name in crossval),
        f"fold_0/{FINAL}", "fold_0/progress.png", "fold_0/validation/summary.json",
        f"fold_1/{FINAL}", "fold_1/progress.png", "fold_1/validation/summary.json",
    }  # fmt: skip
    check_names(archive, tmp_path)
    summary = json.loads((installed / model / "fold_0/validation/summary.json").read_text())
    assert set(summary) == {"foreground_mean", "mean"}
    for fold in (0, 1):
        plain = torch.load(installed / model / f"fold_{fold}" / FINAL, weights_only=False)
        source = torch.load(folder / f"fold_{fold}" / FINAL, weights_only=False)
        assert find_mapo(source)
        assert find_mapo(plain) == []
        assert plain.keys() == source.keys() - {"mapo"}
    check_continuation(make_trainer, installed / model / "fold_0" / FINAL)

    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(folder), None)
    expected = predictor.predict_single_npy_array(make_image(), {"spacing": [1, 1, 1]})
    assert np.array_equal(predict_stock(installed / model, tmp_path), expected)
    assert len(np.unique(expected)) > 1


def check_names(archive: Path, root: Path) -> None:
    """No file is named after MAPO, and none holds a case's name or a path."""
    with zipfile.ZipFile(archive) as opened:
        contents = {name: opened.read(name) for name in opened.namelist()}
    assert not [name for name in contents if "mapo" in name.lower()]
    for name, content in contents.items():
        assert b"case_" not in content, name
        assert str(root).encode() not in content, name


def check_continuation(make_trainer: MakeTrainer, checkpoint: Path) -> None:
    """nnU-Net's own trainer loads it with all that it needs to continue."""
    trainer = make_trainer("nnUNetTrainerTiny")
    trainer.load_checkpoint(str(checkpoint))
    assert trainer.current_epoch == 6
    assert len(trainer.logger.local_logger.my_fantastic_logging["lrs"]) == 6


def test_a_2d_model_of_all_cases_keeps_its_trainer_of_nnunet_and_needs_no_data(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_model("nnUNetTrainerBN_MAPO_tiny", "2d", folds=["all"])
    monkeypatch.delenv("nnUNet_preprocessed")
    monkeypatch.delenv("nnUNet_raw")
    assert run(folder, "-o", tmp_path / "model.zip") == 0
    shown = capsys.readouterr().out
    assert "-c 2d -tr nnUNetTrainerBN -p nnUNetPlans -f all" in shown
    names = zipfile.ZipFile(tmp_path / "model.zip").namelist()
    assert f"{DATASET}/nnUNetTrainerBN__nnUNetPlans__2d/fold_all/{FINAL}" in names


def test_a_network_of_a_third_party_keeps_its_trainer(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(make_model(OWN), "-o", tmp_path / "model.zip") == 0
    shown = capsys.readouterr().out
    assert "-tr nnUNetTrainerOwnNetwork -p" in shown
    assert "If nnUNetTrainerOwnNetwork does not come with that nnU-Net, install it there" in shown


def test_a_trainer_with_another_network_is_noticed_by_its_logits(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_model(OWN)
    monkeypatch.setattr(export, "find_plain_trainer", lambda _: "nnUNetTrainer")
    error = fail(capsys, tmp_path / "model.zip", folder)
    assert re.search(
        r"Fold 0 of nnUNetTrainer__nnUNetPlans__3d_fullres does not compute in nnU-Net "
        r"alone what the source computes: \d+ of 6144 logits differ",  # 3 heads x 8 x 16 x 16
        error,
    )


def test_a_trainer_that_needs_this_package_is_noticed(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_model()
    monkeypatch.setattr(export, "find_plain_trainer", lambda _: "nnUNetTrainerTiny")
    error = fail(capsys, tmp_path / "model.zip", folder)
    assert "stock_logits.py without " in error
    assert "Could not find requested nnunet trainer nnUNetTrainerTiny" in error


def test_a_source_that_cannot_predict_is_named(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model()
    checkpoint = torch.load(folder / "fold_0" / FINAL, weights_only=False)
    del checkpoint["mapo"]["weights"]  # else its checksum would be wrong
    for name, tensor in checkpoint["network_weights"].items():
        if name.endswith("bias") and ".seg_layers." in name:
            tensor.fill_(1e6)  # more than float16 holds
    torch.save(checkpoint, folder / "fold_0" / FINAL)
    error = fail(capsys, tmp_path / "model.zip", folder)
    assert f"stock_logits.py with {folder}" in error
    assert "Encountered inf" in error


def test_what_cannot_be_exported_is_named_and_nothing_is_left(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = make_model(folds=[0, 1]), tmp_path / "out/model.zip"
    output.parent.mkdir()
    stock = make_model("nnUNetTrainerTiny")
    assert "nnUNetTrainerTiny trains without MAPO" in fail(capsys, output, stock)
    assert "Fold all is not in" in fail(capsys, output, folder.parent)
    assert "There is: fold_0, fold_1." in fail(capsys, output, folder, "-f", 3)
    error = fail(capsys, output, folder, "-chk", "checkpoint_best.pth", "-f", 0)
    assert f"fold_0/checkpoint_best.pth is missing. There is: {FINAL}." in error
    with full_disk(2000):
        error = fail(capsys, output, folder)
    assert re.search(r"could not be written .* It needs about \d+\.\d MB; .* free there", error)

    shutil.copytree(folder / "fold_0", folder / "fold_2")
    (folder / "fold_2" / FINAL).rename(folder / "fold_2/checkpoint_latest.pth")
    error = fail(capsys, output, folder, "-f", 0, 2)
    assert f"fold_2/{FINAL} is missing. There is: checkpoint_latest.pth." in error
    (folder / "fold_2" / FINAL).write_bytes((folder / "fold_0" / FINAL).read_bytes()[:5000])
    assert f"fold_2/{FINAL} is damaged" in fail(capsys, output, folder)
    shutil.rmtree(folder / "fold_2")

    output.write_text("mine")
    assert "model.zip exists. Delete it, or name another" in fail(capsys, output, folder)
    assert output.read_text() == "mine"
    (tmp_path / "file").touch()
    assert run(folder, "-o", tmp_path / "file/model.zip") == 1
    assert "file/model.zip could not be written" in capsys.readouterr().err
