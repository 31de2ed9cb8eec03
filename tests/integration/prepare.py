"""Write, plan, shrink and preprocess a raw data set for an integration test."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


def draw_boxes(rng: np.random.Generator) -> np.ndarray:
    """A label map with a small box (2) in a corner of a larger one (1)."""
    segmentation = np.zeros((12, 20, 20), np.uint8)
    low = rng.integers(1, 4, 3)
    for label, size in ((1, (9, 15, 15)), (2, (5, 8, 8))):
        segmentation[tuple(slice(a, a + b) for a, b in zip(low, size, strict=True))] = label
    return segmentation


def write_dataset(
    root: Path,
    dataset: str,
    labels: Mapping[str, Any],
    segmentations: Sequence[np.ndarray],
    *,
    num_channels: int = 1,
    spacing_mm: Sequence[float] = (1, 1, 1),
    **description: Any,
) -> None:
    """Write a raw data set whose images are its label maps with noise.

    Args:
        root: Folder with nnU-Net's three folders.
        dataset: `DatasetNNN_Name`.
        labels: As in `dataset.json`.
        segmentations: One of each case.
        num_channels: Image channels.
        spacing_mm: Of the voxels, in the order of the arrays' axes.
        description: More entries of `dataset.json`.
    """
    rng = np.random.default_rng(1)
    raw = root / "raw" / dataset
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for number, segmentation in enumerate(segmentations):
        arrays = {f"labelsTr/case_{number}": segmentation}
        for channel in range(num_channels):
            noise = rng.normal(0, 0.3, segmentation.shape)
            image = (segmentation % 7 + noise).astype(np.float32)
            arrays[f"imagesTr/case_{number}_{channel:04d}"] = image
        for name, array in arrays.items():
            image = sitk.GetImageFromArray(array)
            image.SetSpacing([float(size) for size in reversed(spacing_mm)])
            sitk.WriteImage(image, raw / f"{name}.nii.gz")
    description |= {
        "channel_names": {str(channel): "MRI" for channel in range(num_channels)},
        "labels": labels,
        "numTraining": len(segmentations),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))


def prepare(
    root: Path,
    dataset: str,
    patch_sizes: Mapping[str, Sequence[int]],
    num_training: int,
    *,
    change_plans: Callable[[dict[str, Any]], None] | None = None,
    preprocess: Sequence[str] | None = None,
) -> None:
    """Plan a raw data set, make its plans small, preprocess it, and split off one fold.

    Args:
        root: Folder with nnU-Net's three folders.
        dataset: `DatasetNNN_Name`.
        patch_sizes: Patch of each configuration that is wanted.
        num_training: Number of training cases of the fold; the others are validation cases.
        change_plans: Changes the small plans.
        preprocess: Configurations to preprocess, if not those of `patch_sizes`.
    """
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    number = int(dataset[7:10])
    # nnU-Net's planner cannot do with 0 processes; training then augments in this process.
    os.environ["nnUNet_n_proc_DA"] = "1"
    nnunet.extract_fingerprints([number], num_processes=1)
    nnunet.plan_experiments([number])
    os.environ["nnUNet_n_proc_DA"] = "0"
    preprocessed = root / "preprocessed" / dataset
    plans_file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    _shrink(plans, patch_sizes)
    if change_plans:
        change_plans(plans)
    plans_file.write_text(json.dumps(plans))
    (preprocessed / "resenc.json").write_text(json.dumps(_with_residual_encoder(plans)))
    wanted = preprocess or list(patch_sizes)
    nnunet.preprocess([number], configurations=wanted, num_processes=[1] * len(wanted))
    labels = (root / "raw" / dataset / "labelsTr").iterdir()
    names = sorted(path.name.split(".")[0] for path in labels)
    splits = [
        {"train": names[:num_training], "val": names[num_training:]},
        {"train": names[:1], "val": names[-1:]},  # fold 1 has a single training case
    ]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))


def _shrink(plans: dict[str, Any], patch_sizes: Mapping[str, Sequence[int]]) -> None:
    plans["configurations"] = {name: plans["configurations"][name] for name in patch_sizes}
    for name, patch_size in patch_sizes.items():
        configuration, axes = plans["configurations"][name], len(patch_size)
        configuration.update(patch_size=list(patch_size), batch_size=2)
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
    for configuration in plans["configurations"].values():
        architecture = configuration.get("architecture")
        if architecture is None:  # inherited
            continue
        architecture["network_class_name"] = (
            "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        )
        kwargs = architecture["arch_kwargs"]
        kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
    return plans
