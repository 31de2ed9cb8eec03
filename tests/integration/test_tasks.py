"""Whole trainings on the kinds of data that nnU-Net promises to handle."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepare import draw_boxes, prepare, write_dataset

from nnunetv2_mapo import trainer as mapo
from nnunetv2_mapo.method.cases import load_case, open_case
from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.tools.models import ModelError, open_model
from nnunetv2_mapo.tools.trainers import open_training_cases

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
PATCH_SIZES = {"2d": (16, 16), "3d_fullres": (8, 16, 16)}


def draw(number: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw_boxes(rng) for _ in range(number)]


def train(trainer: Any) -> Any:
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert all(value > 0 for value in logged["mining/pairs"][2:])
    assert all(math.isfinite(value) for value in logged["loss/dpo"][2:])
    return trainer


def stacks(trainer: Any) -> Iterator[tuple[np.ndarray, list[Any]]]:
    """Stack of each case of each round, and its records."""
    for folder in sorted((Path(trainer.output_folder) / "preferences").iterdir()):
        mined = Round(folder, json.loads((folder / "manifest.json").read_text())["origin"])
        for name, records in mined.find_finished([f"case_{n}" for n in range(4)]).records.items():
            yield np.asarray(mined.open_stack(name)[:]), records


# Regions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regions(nnunet_folder: Path) -> str:
    name, labels = "Dataset991_Regions", {"background": 0, "whole": [1, 2], "small": [2]}
    write_dataset(nnunet_folder, name, labels, draw(6), regions_class_order=[1, 2])
    prepare(nnunet_folder, name, PATCH_SIZES, num_training=4)
    return name


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_overlapping_regions_are_mined_as_bit_masks(
    make_trainer: MakeTrainer, regions: str, configuration: str
) -> None:
    trainer = train(make_trainer(configuration=configuration, dataset=regions))
    seen = set()
    for stack, _ in stacks(trainer):
        assert set(np.unique(stack[0])) <= {-1, 0, 1, 2}
        seen |= set(np.unique(stack[1:3]).tolist())
    # "small" without "whole" (2) is no label of the ground truth, but sigmoid heads can say it
    assert seen == {0, 1, 2, 3}
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation/summary.json").read_text())
    assert set(summary["mean"]) == {"(1, 2)", "(2,)"}


# Ignore label -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sparse(nnunet_folder: Path) -> str:
    name, labels = "Dataset992_Sparse", {"background": 0, "large": 1, "small": 2, "ignore": 3}
    segmentations = draw(6)
    for segmentation in segmentations:
        segmentation[:, :, ::3] = 3
    write_dataset(nnunet_folder, name, labels, segmentations)
    prepare(nnunet_folder, name, PATCH_SIZES, num_training=4)
    return name


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_ignored_voxels_never_disagree(
    make_trainer: MakeTrainer, sparse: str, configuration: str
) -> None:
    trainer = train(make_trainer(configuration=configuration, dataset=sparse))
    for stack, records in stacks(trainer):
        ignored = stack[0] == 3
        assert 0.2 < ignored.mean() < 0.5
        assert not (stack[1] != stack[2])[ignored].any()
        assert stack[1:3].max() <= 2
        num_disagreeing = sum(record.num_disagreeing for record in records)
        assert num_disagreeing == (stack[1] != stack[2]).sum()


# Cascade ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cascade(nnunet_folder: Path) -> str:
    """The boxes again with a low resolution and a second stage, which so small images never get."""
    name, labels = "Dataset993_Cascade", {"background": 0, "large": 1, "small": 2}
    write_dataset(nnunet_folder, name, labels, draw(6))

    def add_stages(plans: dict[str, Any]) -> None:
        plans["configurations"] |= {
            "3d_lowres": {
                "inherits_from": "3d_fullres",
                "data_identifier": "lowres",
                "spacing": [1.0, 1.25, 1.25],
                "next_stage": "3d_cascade_fullres",
            },
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        }

    prepare(
        nnunet_folder, name, {"3d_fullres": (8, 16, 16)}, num_training=4,
        change_plans=add_stages, preprocess=["3d_fullres", "3d_lowres"],
    )  # fmt: skip
    return name


def test_both_stages_of_a_cascade_are_trained_with_mapo(
    make_trainer: MakeTrainer, cascade: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # validation of fold "all" predicts every case for the next stage
    low = train(make_trainer(configuration="3d_lowres", dataset=cascade, fold="all"))
    low.perform_actual_validation()
    full = make_trainer(configuration="3d_cascade_fullres", dataset=cascade)
    inputs = []

    def open_and_keep(dataset: Any, label_manager: Any, identifier: str) -> Any:
        image, segmentation = open_case(dataset, label_manager, identifier)
        inputs.append((identifier, image[(slice(None),) * 4]))
        return image, segmentation

    monkeypatch.setattr(mapo, "open_case", open_and_keep)
    train(full)
    dataset, _ = full.get_tr_and_val_datasets()
    for identifier, image in inputs:
        data, _, previous_stage, _ = dataset.load_case(identifier)
        assert image.shape == (3, *data.shape[1:])
        assert np.array_equal(image[0], data[0])
        assert np.array_equal(image[1:], [previous_stage[:] == 1, previous_stage[:] == 2])
    full.perform_actual_validation()
    check_opened_cascade(Path(full.output_folder_base), dict(inputs))


def check_opened_cascade(folder: Path, inputs: dict[str, torch.Tensor]) -> None:
    """A model opened afterwards sees what mining saw, or says that the previous stage is gone."""
    model = open_model(folder, 0, "checkpoint_final.pth", torch.device("cpu"))
    cases = open_training_cases(model)
    for identifier, image in inputs.items():
        assert torch.equal(load_case(cases, model.label_manager, identifier)[0], image)
    [predicted] = folder.parent.glob("*3d_lowres/predicted_next_stage")
    predicted.rename(predicted.with_name("moved"))
    with pytest.raises(ModelError, match="3d_cascade_fullres needs the segmentations of 3d_lowres"):
        open_training_cases(model)


# Whatever else ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(nnunet_folder: Path) -> str:
    """Two channels, thick slices, 40 classes of which one is in a single case, an empty case.

    The patch is longer than most cases along two axes and far from a cube.
    """
    labels = {"background": 0} | {f"structure {label}": label for label in range(1, 41)}
    segmentations = []
    for number in range(6):
        segmentation = np.zeros((6 + number % 3, 24, 14), np.uint8)
        if number != 2:
            blocks = np.arange(1, 41).reshape(2, 5, 4)
            segmentation[1:5, 2:22, 1:13] = blocks.repeat(2, 0).repeat(4, 1).repeat(3, 2)
        if number > 0:
            segmentation[segmentation == 40] = 0
        segmentations.append(segmentation)
    name = "Dataset994_Odd"
    write_dataset(nnunet_folder, name, labels, segmentations, num_channels=2, spacing_mm=(5, 1, 1))
    prepare(nnunet_folder, name, {"2d": (16, 16), "3d_fullres": (4, 32, 16)}, num_training=4)
    return name


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_channels_anisotropy_padding_empty_cases_and_40_classes(
    make_trainer: MakeTrainer, odd: str, configuration: str
) -> None:
    trainer = train(make_trainer(configuration=configuration, dataset=odd))
    dummy_2d = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[1]
    assert dummy_2d == (configuration == "3d_fullres")
    for stack, records in stacks(trainer):
        assert len(records) == (1 if configuration == "3d_fullres" else len(stack[0]))
        empty = stack[0].max() <= 0
        assert stack[1:3].max() <= 40
        if empty:  # a candidate is right only if it is empty as well
            assert {dice for record in records for dice in record.dice} <= {0.0, 1.0}
