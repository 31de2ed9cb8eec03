"""Small preprocessed data sets, made by nnU-Net itself, for all integration tests."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from prepare import prepare

DATASET = "Dataset990_Boxes"
HERE = Path(__file__).parent
SHAPE = (12, 20, 20)


def _write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    segmentation = np.zeros(SHAPE, np.uint8)
    low = rng.integers(2, 5, 3)
    segmentation[tuple(slice(start, start + 7) for start in low)] = 1
    segmentation[tuple(slice(start, start + 4) for start in low)] = 2
    image = segmentation + rng.normal(0, 0.3, SHAPE)
    for part, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", segmentation)):
        suffix = "_0000" if part == "imagesTr" else ""
        sitk.WriteImage(sitk.GetImageFromArray(array), folder / part / f"{name}{suffix}.nii.gz")


@pytest.fixture(scope="session")
def nnunet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with nnU-Net's three folders, which the environment names."""
    root = tmp_path_factory.mktemp("nnunet")
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ.update(nnUNet_def_n_proc="1", nnUNet_compile="0")
    trainer_folders = [HERE / "trainers"]
    if not (Path(nnunetv2.__path__[0]) / "training/nnUNetTrainer/variants/mapo").is_dir():
        trainer_folders.append(HERE.parents[1] / "trainer_configs")
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(map(str, trainer_folders))
    return root


@pytest.fixture(scope="session")
def boxes(nnunet_folder: Path) -> Path:
    """Folder with nnU-Net's three folders; the data set in it is preprocessed."""
    raw = nnunet_folder / "raw" / DATASET
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        _write_case(raw, f"case_{number}", rng)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "large": 1, "small": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    patch_sizes = {"2d": (16, 16), "3d_fullres": (8, 16, 16)}
    prepare(nnunet_folder, DATASET, patch_sizes, num_training=4)
    return nnunet_folder


@pytest.fixture
def make_trainer(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Makes a trainer as `nnUNetv2_train` does; results go to a folder of this test."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    # nnU-Net's own picture takes longer to draw than all the epochs of a test together
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)

    def make(
        name: str = "nnUNetTrainerTiny_MAPO_tiny",
        configuration: str = "3d_fullres",
        *,
        dataset: str = DATASET,
        plans: str = "nnUNetPlans",
        continue_training: bool = False,
    ) -> Any:
        trainer = get_trainer_from_args(
            dataset,
            configuration,
            0,
            name,
            plans,
            continue_training=continue_training,
            device=torch.device("cpu"),
        )
        maybe_load_checkpoint(trainer, continue_training, validation_only=False)
        return trainer

    return make
