"""Raw data sets -> small copies, planned and preprocessed by nnU-Net."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .images import find_same, shrink_image, shrink_mask, split_cases
from .protocol import Dataset, fingerprint

PLANS = "nnUNetPlans"
UNLABELLED = "unlabelled"  # folder of images beside `raw`
OUTLINED = "outlined"  # folder of all preprocessed cases that are in no part of the split


def prepare(dataset: Dataset, data: Path | None, work: Path) -> Path:
    """Prepare a data set unless that was done before.

    Args:
        dataset: Which one.
        data: Folder of the raw data sets; None if it is not known.
        work: Work folder.

    Returns:
        Folder with nnU-Net's `raw` and `preprocessed`.
    """
    root = work / "prepared" / f"{dataset.folder}-{fingerprint(dataset)}"
    if root.is_dir():
        return root
    if data is None or not (data / dataset.folder).is_dir():
        message = f"The folder of the raw data sets has no {dataset.folder}: name it with --data."
        raise FileNotFoundError(message)
    own = root.with_name(f"{root.name}-{os.getpid()}")  # another process may prepare it as well
    shutil.rmtree(own, ignore_errors=True)
    copy_raw(dataset, data / dataset.folder, own / "raw" / dataset.folder)
    use_folders(own)
    preprocess(dataset, own)
    try:
        own.rename(root)
    except OSError:  # it was faster
        shutil.rmtree(own)
    return root


def use_folders(root: Path, results: Path | None = None) -> None:
    """Let nnU-Net work in these folders."""
    for name, folder in (
        ("raw", root / "raw"),
        ("preprocessed", root / "preprocessed"),
        ("results", results or root / "results"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder)


def copy_raw(dataset: Dataset, source: Path, target: Path) -> None:
    """Copy a raw data set, its 2D images resized."""
    target.mkdir(parents=True)
    shutil.copy(source / "dataset.json", target)
    for part, shrink in (("imagesTr", shrink_image), ("labelsTr", shrink_mask)):
        if dataset.image_size is None:
            shutil.copytree(source / part, target / part)
            continue
        (target / part).mkdir()
        for path in sorted((source / part).iterdir()):
            small = shrink(read_array(path), dataset.image_size)
            image = sitk.GetImageFromArray(small, isVector=small.ndim == 3)
            sitk.WriteImage(image, target / part / path.name)


def read_array(path: Path) -> Any:
    """Content of an image file as an array."""
    return sitk.GetArrayFromImage(sitk.ReadImage(path))


def preprocess(dataset: Dataset, root: Path) -> None:
    """Plan with nnU-Net, make its plans small, preprocess, and write the split."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    number = int(dataset.folder[7:10])
    before = os.environ.get("nnUNet_n_proc_DA")
    os.environ["nnUNet_n_proc_DA"] = "1"  # nnU-Net's planner cannot do with 0
    nnunet.extract_fingerprints([number], num_processes=1)
    nnunet.plan_experiments([number])
    if before is not None:
        os.environ["nnUNet_n_proc_DA"] = before
    folder = root / "preprocessed" / dataset.folder
    plans_file = folder / f"{PLANS}.json"
    plans = shrink_plans(dataset, json.loads(plans_file.read_text()))
    plans_file.write_text(json.dumps(plans, indent=1))
    nnunet.preprocess([number], configurations=[dataset.configuration], num_processes=[1])
    split = make_split(dataset, root / "raw" / dataset.folder)
    (folder / "splits_final.json").write_text(json.dumps([split], indent=1))
    if dataset.num_unlabelled:
        set_apart(dataset, root, split)


def set_apart(dataset: Dataset, root: Path, split: dict[str, list[str]]) -> None:
    """Make a folder of images that are in no part of a split, nor in nnU-Net's data any more."""
    images = root / "raw" / dataset.folder / "imagesTr"
    used = {*split["train"], *split["val"]}
    (root / OUTLINED).mkdir()
    for path in (root / "preprocessed" / dataset.folder).glob(f"*_{dataset.configuration}/*"):
        if path.name.split(".")[0].removesuffix("_seg") not in used:
            path.rename(root / OUTLINED / path.name)
    others = [path for path in sorted(images.iterdir()) if path.name.split("_0000.")[0] not in used]
    (root / UNLABELLED).mkdir()
    chosen = np.random.default_rng(1).permutation(len(others))[: dataset.num_unlabelled]
    for number in sorted(chosen):
        shutil.copy(others[number], root / UNLABELLED)


def shrink_plans(dataset: Dataset, plans: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's plans with the study's patch, batch, spacing and network."""
    configuration = plans["configurations"][dataset.configuration]
    axes, stages = len(dataset.patch_size), len(dataset.features)
    configuration.update(patch_size=list(dataset.patch_size), batch_size=dataset.batch_size)
    if dataset.spacing_mm is not None:
        configuration["spacing"] = [dataset.spacing_mm] * axes
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=list(dataset.features),
        kernel_sizes=[[3] * axes] * stages,
        strides=[[1] * axes, *[[2] * axes] * (stages - 1)],
        n_conv_per_stage=[1, *[2] * (stages - 1)],
        n_conv_per_stage_decoder=[1] * (stages - 1),
    )
    return {**plans, "configurations": {dataset.configuration: configuration}}


def make_split(dataset: Dataset, raw: Path) -> dict[str, list[str]]:
    """Split of a raw data set; without known groups, images that show the same stay together."""
    ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
    names = sorted(path.name.removesuffix(ending) for path in (raw / "labelsTr").iterdir())
    same = []
    if dataset.spacing_mm is None and dataset.group_size == 1:
        images = [read_array(raw / "imagesTr" / f"{name}_0000{ending}") for name in names]
        thumbnails = [shrink_image(image, 12).mean(-1).ravel() for image in images]
        same = find_same(np.array(thumbnails))
    return split_cases(
        names,
        dataset.num_training,
        dataset.num_validation,
        group_size=dataset.group_size,
        same=same,
    )
