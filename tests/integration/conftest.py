"""One small preprocessed data set, made by nnU-Net itself, for all integration tests."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

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


def _shrink(plans: dict[str, Any]) -> None:
    for name, patch_size in (("2d", [16, 16]), ("3d_fullres", [8, 16, 16])):
        configuration, axes = plans["configurations"][name], len(patch_size)
        configuration.update(patch_size=patch_size, batch_size=2)
        configuration["architecture"]["arch_kwargs"].update(
            n_stages=3,
            features_per_stage=[4, 8, 8],
            kernel_sizes=[[3] * axes] * 3,
            strides=[[1] * axes, [2] * axes, [2] * axes],
            n_conv_per_stage=[1] * 3,
            n_conv_per_stage_decoder=[1] * 2,
        )


def _with_residual_encoder(plans: dict[str, Any]) -> dict[str, Any]:
    """The same plans with the network of nnU-Net's ResEnc presets."""
    plans = {**deepcopy(plans), "plans_name": "resenc"}
    for name in ("2d", "3d_fullres"):
        architecture = plans["configurations"][name]["architecture"]
        architecture["network_class_name"] = (
            "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        )
        kwargs = architecture["arch_kwargs"]
        kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
    return plans


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with nnU-Net's three folders; the data set in it is preprocessed."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    root = tmp_path_factory.mktemp("nnunet")
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(root / name)
    # nnU-Net's planner cannot do with 0 processes; training then augments in this process.
    os.environ.update(nnUNet_n_proc_DA="1", nnUNet_def_n_proc="1", nnUNet_compile="0")
    trainer_folders = [HERE / "trainers"]
    if not (Path(nnunetv2.__path__[0]) / "training/nnUNetTrainer/variants/mapo").is_dir():
        trainer_folders.append(HERE.parents[1] / "trainer_configs")
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(map(str, trainer_folders))

    raw = root / "raw" / DATASET
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

    nnunet.extract_fingerprints([990], num_processes=1)
    nnunet.plan_experiments([990])
    plans_file = root / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    _shrink(plans)
    plans_file.write_text(json.dumps(plans))
    (plans_file.parent / "resenc.json").write_text(json.dumps(_with_residual_encoder(plans)))
    nnunet.preprocess([990], configurations=("2d", "3d_fullres"), num_processes=(1, 1))
    os.environ["nnUNet_n_proc_DA"] = "0"
    names = [f"case_{number}" for number in range(6)]
    splits = [{"train": names[:4], "val": names[4:]}]
    (root / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    return root


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
        plans: str = "nnUNetPlans",
        continue_training: bool = False,
    ) -> Any:
        trainer = get_trainer_from_args(
            DATASET,
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
