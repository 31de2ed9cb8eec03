"""Plan, shrink and preprocess a raw data set for an integration test."""

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any


def prepare(
    root: Path, dataset: str, patch_sizes: Mapping[str, Sequence[int]], num_training: int
) -> None:
    """Plan a raw data set, make its plans small, preprocess it, and split off one fold.

    Args:
        root: Folder with nnU-Net's three folders.
        dataset: `DatasetXXX_Name`.
        patch_sizes: Patch of each configuration that is wanted.
        num_training: Number of training cases of the fold; the others are validation cases.
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
    plans_file.write_text(json.dumps(plans))
    (preprocessed / "resenc.json").write_text(json.dumps(_with_residual_encoder(plans)))
    nnunet.preprocess(
        [number], configurations=list(patch_sizes), num_processes=[1] * len(patch_sizes)
    )
    names = sorted(
        path.name.split(".")[0] for path in (root / "raw" / dataset / "labelsTr").iterdir()
    )
    splits = [{"train": names[:num_training], "val": names[num_training:]}]
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
        architecture = configuration["architecture"]
        architecture["network_class_name"] = (
            "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        )
        kwargs = architecture["arch_kwargs"]
        kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
    return plans
