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
from nnunetv2_mapo.tools.export import export, stock_logits
from nnunetv2_mapo.tools.export.check_input import CASE, NOISE, make_check_input
from nnunetv2_mapo.tools.export.plain_trainer import PlainTrainer
from nnunetv2_mapo.tools.models import open_model

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
    assert run(*arguments, output) == 1
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
    assert run(folder, archive) == 0
    assert sorted(path.name for path in archive.parent.iterdir()) == [
        "model.zip",
        "model.zip.json",
    ]

    shown, model = capsys.readouterr().out, f"{DATASET}/nnUNetTrainer__nnUNetPlans__3d_fullres"
    assert "2 of 2 folds: logits equal bit for bit" in shown
    assert f"nnUNetv2_install_pretrained_model_from_zip '{archive}'" in shown
    command = f"nnUNetv2_predict -d {DATASET} -c 3d_fullres -tr nnUNetTrainer -p nnUNetPlans -f 0 1"
    assert f"{command} -i INPUT_FOLDER" in shown
    assert f"overwrites a model of the same name in that nnUNet_results: {model}" in shown
    assert "install it there" not in shown

    installed = tmp_path / "installed"
    monkeypatch.setenv("nnUNet_results", str(installed))
    install_model_from_zip_file(str(archive))
    files = {str(p.relative_to(installed / model)) for p in installed.rglob("*") if p.is_file()}
    crossval = {"postprocessing.pkl", "postprocessing.json", "summary.json"}
    assert files == {
        "plans.json", "dataset.json", "dataset_fingerprint.json", "mapo_export.json",
        *(f"crossval_results_folds_0_1/{name}" for name in crossval),
        f"fold_0/{FINAL}", "fold_0/progress.png", "fold_0/validation/summary.json",
        f"fold_1/{FINAL}",
    }  # fmt: skip
    names = [name for name in zipfile.ZipFile(archive).namelist() if "mapo" in name.lower()]
    assert names == [f"{model}/mapo_export.json"]
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


def check_continuation(make_trainer: MakeTrainer, checkpoint: Path) -> None:
    """nnU-Net's own trainer loads it with all that it needs to continue."""
    trainer = make_trainer("nnUNetTrainerTiny")
    trainer.load_checkpoint(str(checkpoint))
    assert trainer.current_epoch == 6
    assert len(trainer.logger.local_logger.my_fantastic_logging["lrs"]) == 6


def test_models_of_several_trainers_and_dimensions_go_into_one_folder(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        make_model(MAPO, "2d"),
        make_model("nnUNetTrainerBN_MAPO_tiny", "3d_fullres", folds=["all"]),
        make_model(OWN, "3d_fullres"),
        make_model("nnUNetTrainerTiny", "3d_fullres"),  # stock
    ]
    output = tmp_path / "plain"
    assert run(*folders, output) == 0
    shown = capsys.readouterr().out
    assert "compared on a real case, 1 x 16 x 16 voxels: case_0" in shown
    assert "compared on a real case, 8 x 16 x 16 voxels: case_0" in shown
    assert f"export nnUNet_results={output}" in shown
    notice = (
        f"nnUNetTrainerOwnNetwork builds the network of {DATASET}/nnUNetTrainerOwnNetwork"
        "__nnUNetPlans__3d_fullres and does not come with nnU-Net: install it there"
    )
    assert notice in shown
    assert shown.count("does not come with nnU-Net") == 1

    models = sorted(path.name for path in (output / DATASET).iterdir())
    assert models == [
        "nnUNetTrainerBN__nnUNetPlans__3d_fullres",
        "nnUNetTrainerOwnNetwork__nnUNetPlans__3d_fullres",
        "nnUNetTrainer__nnUNetPlans__2d",
        "nnUNetTrainer__nnUNetPlans__3d_fullres",
    ]
    written = (tmp_path / "plain.json").read_text()
    assert "case_0" not in written
    assert str(tmp_path) not in written
    record = json.loads(written)
    assert record["sha256"] is None
    for each, source in zip(record["models"], folders, strict=True):
        model = f"{each['exported_trainer']}__{each['plans']}__{each['configuration']}"
        assert json.loads((output / DATASET / model / "mapo_export.json").read_text()) == each
        assert source.name.startswith(f"{each['source_trainer']}__")
        assert each["verification"]["input"] == CASE
        [(fold, about)] = each["folds"].items()
        assert set(each["verification"]["sha256_of_logits"]) == {fold}
        assert (about["mapo"] is None) == (each["source_trainer"] == "nnUNetTrainerTiny")
    assert [m["is_trainer_of_nnunet"] for m in record["models"]] == [True, True, False, True]
    assert record["models"][1]["folds"]["all"]["mapo"]["num_rounds"] == 2


def test_without_preprocessed_data_noise_is_compared_and_the_record_says_so(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_model()
    monkeypatch.delenv("nnUNet_preprocessed")
    assert run(folder, tmp_path / "model.zip", "-f", "0") == 0
    assert "compared on noise, 8 x 16 x 16 voxels: no preprocessed case" in capsys.readouterr().out
    [record] = json.loads((tmp_path / "model.zip.json").read_text())["models"]
    assert record["verification"]["input"] == NOISE
    assert record["verification"]["shape"] == [1, 8, 16, 16]


def test_a_check_input_is_a_window_of_the_preprocessed_case(
    make_model: Callable[..., Path], boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(make_model(), 0, FINAL, torch.device("cpu"))
    real = make_check_input(model)
    assert (real.kind, real.detail, real.image.shape) == (CASE, "case_0", (1, 8, 16, 16))
    monkeypatch.setenv("nnUNet_preprocessed", str(boxes / "nowhere"))
    noise = make_check_input(model)
    assert f"{DATASET} is not preprocessed for 3d_fullres" in noise.detail
    assert (noise.kind, noise.image.shape) == (NOISE, (1, 8, 16, 16))
    assert np.array_equal(noise.image, make_check_input(model).image)


def test_preprocessed_data_without_a_readable_case_becomes_noise_with_the_reason(
    make_model: Callable[..., Path], boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(make_model(), 0, FINAL, torch.device("cpu"))
    name = f"{DATASET}/{model.configuration_manager.data_identifier}"
    folder = tmp_path / "preprocessed" / name
    shutil.copytree(boxes / "preprocessed" / name, folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    prefix = f"no preprocessed case of {DATASET} can be read"
    for content, error in ((b"", "EOFError"), (b"no pickle", "UnpicklingError")):
        (folder / "case_0.pkl").write_bytes(content)
        noise = make_check_input(model)
        assert noise.kind == NOISE
        assert noise.detail.startswith(f"{prefix} ({error}: ")
    for file in folder.iterdir():
        file.unlink()
    (folder / "case_0_seg.b2nd").touch()  # all that an interrupted preprocessing left
    noise = make_check_input(model)
    assert (noise.kind, noise.detail) == (NOISE, f"{folder} has no case")


def test_a_linked_model_folder_is_called_as_the_link(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model()
    link = tmp_path / "links" / folder.name
    link.parent.mkdir()
    moved = folder.rename(folder.with_name("somewhere else"))
    link.symlink_to(moved, target_is_directory=True)
    assert run(link, tmp_path / "model.zip") == 0
    assert f"{folder.name} -> " in capsys.readouterr().out


def test_too_little_memory_is_said_whatever_torch_calls_it(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compute_logits(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.delattr(torch, "OutOfMemoryError", raising=False)  # not there before torch 2.5
    monkeypatch.setattr(stock_logits, "compute_logits", compute_logits)
    error = fail(capsys, tmp_path / "model.zip", make_model())
    assert "cpu has too little memory for one window. Free some, or use -device cpu." in error


def test_a_value_that_was_written_wrong_is_noticed(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def save(checkpoint: dict[str, Any], path: Path) -> None:
        weights = {name: tensor.clone() for name, tensor in checkpoint["network_weights"].items()}
        next(iter(weights.values())).view(-1)[0] += 1e-6
        torch.save({**checkpoint, "network_weights": weights}, path)

    folder = make_model()
    monkeypatch.setattr(export, "save", save)
    for output in ("model.zip", "model"):
        assert "were not written as they are" in fail(capsys, tmp_path / output, folder)


def test_a_trainer_with_another_network_is_noticed_by_its_logits(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_model(OWN)
    monkeypatch.setattr(
        export, "find_plain_trainer", lambda _: PlainTrainer("nnUNetTrainer", is_shipped=True)
    )
    error = fail(capsys, tmp_path / "model.zip", folder)
    assert re.search(
        r"Fold 0 of nnUNetTrainer__nnUNetPlans__3d_fullres does not compute in nnU-Net alone what "
        r"the source computes: \d+ of 6144 logits, by up to \d",  # 3 heads x 8 x 16 x 16
        error,
    )


def test_a_trainer_that_needs_this_package_is_noticed(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_model()
    monkeypatch.setattr(
        export, "find_plain_trainer", lambda _: PlainTrainer("nnUNetTrainerTiny", is_shipped=False)
    )
    error = fail(capsys, tmp_path / "model.zip", folder)
    assert "nnU-Net without nnunetv2-mapo cannot predict with the exported model" in error
    assert "Could not find requested nnunet trainer nnUNetTrainerTiny" in error


def test_a_source_that_cannot_predict_is_named(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model("nnUNetTrainerTiny")
    checkpoint = torch.load(folder / "fold_0" / FINAL, weights_only=False)
    for name, tensor in checkpoint["network_weights"].items():
        if name.endswith("bias") and ".seg_layers." in name:
            tensor.fill_(1e6)  # more than float16 holds
    torch.save(checkpoint, folder / "fold_0" / FINAL)
    error = fail(capsys, tmp_path / "model.zip", folder)
    assert f"Fold 0 of {folder} cannot predict: Encountered inf" in error


def test_what_cannot_be_exported_is_named_and_nothing_is_left(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = make_model(folds=[0, 1]), tmp_path / "out/model.zip"
    output.parent.mkdir()
    other = make_model("nnUNetTrainer_MAPO_tiny")
    error = fail(capsys, output, folder, other)
    assert f"{folder} and {other} would all become" in error
    assert f"{DATASET}/nnUNetTrainer__nnUNetPlans__3d_fullres" in error
    assert "is no model folder" in fail(capsys, output, folder.parent)
    assert "There is: fold_0, fold_1." in fail(capsys, output, "-f", "3", "--", folder)
    with full_disk(2000):
        error = fail(capsys, output, folder)
    assert re.search(r"could not be written .* It needs about \d+\.\d MB .* free there", error)

    shutil.copytree(folder / "fold_0", folder / "fold_2")
    (folder / "fold_2" / FINAL).rename(folder / "fold_2/checkpoint_latest.pth")
    assert f"fold_2 in {folder} has no {FINAL}" in fail(capsys, output, folder)
    (folder / "fold_2" / FINAL).write_bytes((folder / "fold_0" / FINAL).read_bytes()[:5000])
    assert f"fold_2/{FINAL} is damaged" in fail(capsys, output, folder)
    shutil.copy(other / "fold_0" / FINAL, folder / "fold_2" / FINAL)
    error = fail(capsys, output, folder)
    assert "Fold 2 in" in error
    assert "trained as nnUNetTrainer_MAPO_tiny, 3d_fullres, fold 0 as nnUNetTrainerTiny" in error

    for existing in ("model.zip", "model.zip.json"):
        (output.parent / existing).write_text("mine")
        assert f"{existing} exists. Delete it, or name another" in fail(capsys, output, folder)
        assert (output.parent / existing).read_text() == "mine"
        (output.parent / existing).unlink()
    (tmp_path / "file").touch()
    assert run(folder, tmp_path / "file/model.zip") == 1
    assert "file/model.zip could not be written" in capsys.readouterr().err
