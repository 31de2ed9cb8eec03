"""The script of examples/challenge-submission, outside Docker, with a model that MAPO trained."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

from nnunetv2_mapo.cli import main

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "examples/challenge-submission/predict.py"
DATASET = "Dataset990_Boxes"


def train(make_trainer: Callable[..., Any], num_folds: int) -> Path:
    """Train folds; the model's folder."""
    for fold in range(num_folds):
        trainer = make_trainer(fold=fold)
        trainer.run_training()
    return Path(trainer.output_folder_base)


def predict_by_nnunet(model: Path, folds: tuple[int, ...], images: Path, output: Path) -> None:
    """What `nnUNetv2_predict -device cpu -npp 0 -nps 0` does."""
    output.mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    predictor.predict_from_files_sequential(str(images), str(output))


def run_script(results: Path, *arguments: object, **variables: str) -> tuple[int, str]:
    """Exit code and output, without the package and the network."""
    process = subprocess.run(
        [sys.executable, HERE / "offline.py", SCRIPT, *map(str, arguments)],
        env={
            **{name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"},
            "nnUNet_results": str(results),
            "PYTHONPATH": "",
            "OMP_NUM_THREADS": "1",
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return process.returncode, process.stdout


def turn(image: sitk.Image) -> sitk.Image:
    """The same voxels somewhere else, with another axis pointing to the patient's left."""
    image = sitk.Image(image)
    image.SetOrigin((-7.5, 3.0, 120.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    return image


@pytest.fixture
def images(boxes: Path, tmp_path: Path) -> Path:
    """Folder with two cases in nnU-Net's naming."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (4, 5):
        shutil.copy(boxes / f"raw/{DATASET}/imagesTr/case_{number}_0000.nii.gz", folder)
    return folder


def test_segmentations_of_an_offline_stock_nnunet_are_those_of_the_trained_model(
    make_trainer: Callable[..., Any],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = train(make_trainer, num_folds=2)
    predict_by_nnunet(model, (0, 1), images, tmp_path / "expected")
    assert main(["export", "-device", "cpu", str(model), "-o", str(tmp_path / "model.zip")]) == 0
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "installed"))
    install_model_from_zip_file(str(tmp_path / "model.zip"))

    # nnU-Net's own files, as they are.
    code, text = run_script(
        tmp_path / "installed", "--input", images, "--output", tmp_path / "new/same"
    )
    assert code == 0, text
    assert "folds 0, 1, on " in text
    assert "2 of 2 cases segmented" in text
    num_foreground = 0
    for number in (4, 5):
        expected = sitk.ReadImage(tmp_path / f"expected/case_{number}.nii.gz")
        written = sitk.ReadImage(tmp_path / f"new/same/case_{number}.nii.gz")
        labels = sitk.GetArrayFromImage(written)
        assert np.array_equal(labels, sitk.GetArrayFromImage(expected))
        num_foreground += np.count_nonzero(labels)
    assert num_foreground  # an empty segmentation would equal another

    # A challenge's files: another ending, plain names, another geometry, one of them damaged.
    challenge = tmp_path / "challenge"
    challenge.mkdir()
    (challenge / "a.mha").write_bytes(b"no image")
    for number in (4, 5):
        image = sitk.ReadImage(images / f"case_{number}_0000.nii.gz")
        sitk.WriteImage(turn(image), challenge / f"case_{number}.mha")
    code, text = run_script(
        tmp_path / "installed", "--input", challenge, "--output", tmp_path / "mha"
    )
    assert code == 1
    assert "FAILED a.mha: RuntimeError" in text
    assert "2 of 3 cases segmented" in text
    assert {path.name for path in (tmp_path / "mha").iterdir()} == {"case_4.mha", "case_5.mha"}
    for number in (4, 5):
        expected = sitk.ReadImage(tmp_path / f"expected/case_{number}.nii.gz")
        written = sitk.ReadImage(tmp_path / f"mha/case_{number}.mha")
        assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(expected))
        assert written.GetPixelID() == sitk.sitkUInt8
        assert written.GetSpacing() == (1, 1, 1)
        assert written.GetOrigin() == (-7.5, 3.0, 120.0)
        assert written.GetDirection() == (0, 1, 0, -1, 0, 0, 0, 0, 1)
