"""Whole trainings and predictions on real data; skipped where MAPO_TEST_DATA names none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from prepare import prepare

DATA = os.environ.get("MAPO_TEST_DATA")
NUM_TRAINING, NUM_VALIDATION = 6, 2
pytestmark = [
    pytest.mark.skipif(DATA is None, reason="MAPO_TEST_DATA does not name a folder of data sets"),
    # nnU-Net divides 0 by 0 where a validation batch has no foreground.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


def copy_some_cases(dataset: str, raw: Path) -> list[str]:
    """Copy the first cases of a data set; the files of its first image."""
    source, target = Path(str(DATA)) / dataset, raw / dataset
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True)
    description = json.loads((source / "dataset.json").read_text())
    labels = sorted((source / "labelsTr").glob(f"*{description['file_ending']}"))
    for label in labels[: NUM_TRAINING + NUM_VALIDATION]:
        shutil.copy(label, target / "labelsTr")
        for image in (source / "imagesTr").glob(f"{label.name.split('.')[0]}_????.*"):
            shutil.copy(image, target / "imagesTr")
    description["numTraining"] = NUM_TRAINING + NUM_VALIDATION
    (target / "dataset.json").write_text(json.dumps(description))
    return sorted(map(str, (target / "imagesTr").glob(f"{labels[0].name.split('.')[0]}_????.*")))


@pytest.mark.parametrize(
    ("dataset", "configuration", "patch_size"),
    [
        ("Dataset004_Hippocampus", "3d_fullres", (24, 32, 24)),
        ("Dataset101_KvasirSEG", "2d", (128, 128)),
    ],
)
def test_real_data_is_mined_in_each_round_validated_and_predicted(
    nnunet_folder: Path,
    make_trainer: Callable[..., Any],
    dataset: str,
    configuration: str,
    patch_size: tuple[int, ...],
) -> None:
    image = copy_some_cases(dataset, nnunet_folder / "raw")
    prepare(nnunet_folder, dataset, {configuration: patch_size}, NUM_TRAINING)
    trainer = make_trainer(configuration=configuration, dataset=dataset)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    for number in (1, 2):
        manifest = json.loads((folder / f"preferences/round_0{number}/manifest.json").read_text())
        records = [record for case in manifest["cases"].values() for record in case["samples"]]
        assert len(records) == NUM_TRAINING  # with or without a pair: so few steps teach little
    trainer.perform_actual_validation()
    summary = json.loads((folder / "validation/summary.json").read_text())
    assert len(summary["metric_per_case"]) == NUM_VALIDATION

    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(folder.parent), (0,))
    reader = determine_reader_writer_from_file_ending(
        predictor.dataset_json["file_ending"], image[0], verbose=False
    )()
    data, properties = reader.read_images(image)
    segmentation = predictor.predict_single_npy_array(data, properties)
    assert segmentation.shape == data.shape[1:]
    assert set(segmentation.ravel().tolist()) <= set(trainer.label_manager.all_labels)
