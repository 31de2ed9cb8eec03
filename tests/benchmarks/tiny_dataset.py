"""A tiny preprocessed data set as nnU-Net leaves it on disk, and real trainers on it.

The networks are as wide as those that nnU-Net plans; only the patches and cases are small.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.training.dataloading.nnunet_dataset import (
    comp_blosc2_params,
    nnUNetDatasetBlosc2,
)
from scipy.ndimage import gaussian_filter

CPU = torch.device("cpu")
DATASET = "Dataset999_Tiny"
CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}
MAX_FEATURES = {2: 512, 3: 320}  # nnU-Net's planner
DATASET_JSON = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "first": 1, "second": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a tiny data set.

    Attributes:
        case: Shape of every case, three axes, in voxels.
        patch: Patch size, two or three axes, in voxels.
        batch_size: Patches in a batch.
        num_stages: Stages of the U-Net; the first has 32 features, each further one twice as many.
    """

    case: tuple[int, int, int]
    patch: tuple[int, ...]
    batch_size: int
    num_stages: int


@dataclass(frozen=True)
class TinyDataset:
    """A data set on disk.

    Attributes:
        shape: Its sizes.
        plans: nnU-Net's plans; trainers get copies, since they change what they are given.
    """

    shape: Shape
    plans: dict[str, Any]

    def make_trainer(self, trainer_class: Any, device: torch.device = CPU) -> Any:
        """Trainer of fold 0, initialised."""
        configuration = CONFIGURATIONS[len(self.shape.patch)]
        plans, dataset_json = copy.deepcopy((self.plans, DATASET_JSON))
        with quiet():
            trainer = trainer_class(plans, configuration, 0, dataset_json, device)
            trainer.initialize()
        return trainer


@contextlib.contextmanager
def tiny_dataset(shape: Shape, num_cases: int = 5) -> Iterator[TinyDataset]:
    """Data set of some cases, all but one for training, in a folder that is deleted afterwards.

    nnU-Net's environment variables point to it, and augmentation runs in the main process.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.update(
            nnUNet_raw=f"{folder}/raw",
            nnUNet_preprocessed=f"{folder}/preprocessed",
            nnUNet_results=f"{folder}/results",
            nnUNet_n_proc_DA="0",
        )
        yield TinyDataset(shape, _write(Path(folder) / "preprocessed" / DATASET, shape, num_cases))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what nnU-Net prints out of the table."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _write(folder: Path, shape: Shape, num_cases: int) -> dict[str, Any]:
    """Write cases, plans, fingerprint and split; returns the plans."""
    plans = _plan(shape)
    cases = folder / "cases"
    cases.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"case_{number}" for number in range(num_cases)]
    for name in names:
        _write_case(cases / name, shape, random)
    save_json(plans, folder / "nnUNetPlans.json")
    save_json(DATASET_JSON, folder / "dataset.json")
    save_json({}, folder / "dataset_fingerprint.json")
    save_json([{"train": names[:-1], "val": names[-1:]}], folder / "splits_final.json")
    return plans


def _write_case(path: Path, shape: Shape, random: np.random.Generator) -> None:
    """Two classes of blobs in noise."""
    in_plane = 0 if len(shape.patch) == 2 else 6
    field = gaussian_filter(random.standard_normal(shape.case), (in_plane, 6, 6))
    segmentation = np.digitize(field / field.std(), [1.0, 1.6])[None].astype(np.int16)
    noise = random.standard_normal((1, *shape.case))
    image = (segmentation + 0.5 * noise).astype(np.float32)
    locations = {label: np.argwhere(segmentation == label)[:10_000] for label in (1, 2)}
    blocks, chunks = comp_blosc2_params(image.shape, shape.patch, image.itemsize)
    nnUNetDatasetBlosc2.save_case(
        image, segmentation, {"class_locations": locations}, str(path), chunks=chunks, blocks=blocks
    )


def _plan(shape: Shape) -> dict[str, Any]:
    """Plans with one configuration, with a network as nnU-Net's planner makes it."""
    num_dimensions, resample = len(shape.patch), {"is_seg": False, "order": 3, "order_z": 0}
    configuration = {
        "data_identifier": "cases",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": shape.batch_size,
        "patch_size": list(shape.patch),
        "median_image_size_in_voxels": list(shape.case[-num_dimensions:]),
        "spacing": [1.0] * num_dimensions,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": num_dimensions == 2,
        "architecture": _plan_network(num_dimensions, shape.num_stages),
    }
    for name in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{name}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{name}_kwargs"] = resample
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {},
        "continue_training": False,
        "configurations": {CONFIGURATIONS[num_dimensions]: configuration},
    }


def _plan_network(num_dimensions: int, num_stages: int) -> dict[str, Any]:
    most, num_axes = MAX_FEATURES[num_dimensions], num_dimensions
    arguments = {
        "n_stages": num_stages,
        "features_per_stage": [min(32 * 2**stage, most) for stage in range(num_stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{num_axes}d",
        "kernel_sizes": [[3] * num_axes] * num_stages,
        "strides": [[1] * num_axes, *[[2] * num_axes] * (num_stages - 1)],
        "n_conv_per_stage": [2] * num_stages,
        "n_conv_per_stage_decoder": [2] * (num_stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{num_axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def perturb(segmentation: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Copy of label maps in which a share of the voxels, in blobs, has the next label of three.

    Args:
        segmentation: Labels 0-2 or padding < 0, any shape.
        share: Share of voxels to change, in (0, 1).
        random: Where the blobs come from.

    Returns:
        Label maps of the same shape.
    """
    noise = random.standard_normal(segmentation.shape)
    axes: Sequence[int] = range(max(0, noise.ndim - 3), noise.ndim)
    field = gaussian_filter(noise, 3, axes=tuple(axes))
    changed = field > np.quantile(field, 1 - share)
    return np.where(changed & (segmentation >= 0), (segmentation + 1) % 3, segmentation)
