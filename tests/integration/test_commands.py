"""What an nnU-Net user does with a trained model: the best configuration, ensembles, zip files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.run.run_training import maybe_load_checkpoint

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
STOCK, MAPO = "nnUNetTrainerTiny", "nnUNetTrainerTiny_MAPO_tiny"
DATASET = "Dataset990_Boxes"


def train(make_trainer: MakeTrainer, name: str) -> Path:
    """Train and validate; the model's folder."""
    trainer = make_trainer(name)
    trainer.run_training()
    trainer.perform_actual_validation(save_probabilities=True)
    return Path(trainer.output_folder_base)


def predict(model: Path) -> np.ndarray:
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    image = np.random.default_rng(0).normal(size=(1, 12, 20, 20)).astype(np.float32)
    segmentation: np.ndarray = predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]})
    return segmentation


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an open file
def test_best_configuration_is_searched_over_stock_and_mapo_and_their_ensemble(
    make_trainer: MakeTrainer,
) -> None:
    model = train(make_trainer, STOCK)
    train(make_trainer, MAPO)
    trained = [
        {"plans": "nnUNetPlans", "configuration": "3d_fullres", "trainer": name}
        for name in (STOCK, MAPO)
    ]
    find_best_configuration(DATASET, trained, num_processes=1, folds=(0,))
    report = json.loads((model.parent / "inference_information.json").read_text())
    assert len(report["all_results"]) == 3
    assert sum("ensemble" in name for name in report["all_results"]) == 1
    assert sum(MAPO in name for name in report["all_results"]) == 2


def test_an_exported_model_predicts_the_same_where_it_is_installed(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train(make_trainer, MAPO)
    (model / "fold_0/progress.png").touch()  # not drawn in tests, but exported
    archive = tmp_path / "model.zip"
    export_pretrained_model(DATASET, str(archive), ("3d_fullres",), MAPO, folds=(0,))
    installed = tmp_path / "elsewhere"
    monkeypatch.setenv("nnUNet_results", str(installed))
    install_model_from_zip_file(str(archive))
    copied = installed / DATASET / model.name
    assert np.array_equal(predict(copied), predict(model))
    assert not (copied / "fold_0/preferences").exists()


def test_a_training_starts_from_pretrained_weights_of_the_stock_trainer(
    make_trainer: MakeTrainer,
) -> None:
    stock = make_trainer(STOCK)
    stock.run_training()
    trainer = make_trainer(MAPO)
    final = str(Path(stock.output_folder) / "checkpoint_final.pth")
    maybe_load_checkpoint(
        trainer, continue_training=False, validation_only=False, pretrained_weights_file=final
    )
    weights = trainer.network.state_dict()
    for name, weight in stock.network.state_dict().items():
        if ".seg_layers." not in name:  # nnU-Net leaves the output heads as they are initialised
            assert torch.equal(weight, weights[name])
    trainer.run_training()


def test_without_checkpoints_a_training_ends_and_leaves_none(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(MAPO)
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("checkpoint*"))
    assert trainer._summary.num_pairs > 0
