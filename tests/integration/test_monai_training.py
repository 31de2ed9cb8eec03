"""Networks of MONAI through a round of MAPO, and nnU-Net's prediction with what was trained."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_mapo.support.errors import InputError

DATASET, PLANS = "Dataset990_Boxes", "monai"
pytestmark = pytest.mark.filterwarnings(  # all from nnU-Net's own code
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:Mean of empty slice:RuntimeWarning",
)


@pytest.fixture(scope="module", autouse=True)
def _plans(boxes: Path) -> None:
    """Plans with patches that every one of the networks takes, except for Swin UNETR's in 3D."""
    folder = boxes / "preprocessed" / DATASET
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"plans_name": PLANS}
    plans["configurations"]["2d"]["patch_size"] = [32, 64]
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 32]
    (folder / f"{PLANS}.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("VNet", "2d"),
        ("DynUNet", "3d_fullres"),
        ("UNETR", "3d_fullres"),
        ("SwinUNETR", "2d"),
        ("SegResNet", "3d_fullres"),
        ("AttentionUnet", "3d_fullres"),
    ],
)
def test_network_passes_a_round_and_predicts(
    make_trainer: Callable[..., Any], boxes: Path, name: str, configuration: str
) -> None:
    stock = "nnUNetTrainerSmallUNETR" if name == "UNETR" else f"nnUNetTrainer_{name}"
    trainer = make_trainer(f"{stock}_MAPO_tiny", configuration, plans=PLANS, fold=1)
    trainer.num_epochs = trainer.num_iterations_per_epoch = 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    assert trainer._summary.num_pairs > 0
    assert math.isfinite(trainer.logger.get_value("loss/dpo", -1))

    stored, trained = (
        nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
        for _ in range(2)
    )
    stored.initialize_from_trained_model_folder(trainer.output_folder_base, (1,))
    trained.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        None,
    )
    file = boxes / f"raw/{DATASET}/imagesTr/case_5_0000.nii.gz"
    image = sitk.GetArrayFromImage(sitk.ReadImage(file))[None]
    segmentation, expected = (
        predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]})
        for predictor in (stored, trained)
    )
    assert segmentation.shape == (12, 20, 20)
    np.testing.assert_array_equal(segmentation, expected)


def test_a_patch_that_the_network_cannot_take_stops_the_start(
    make_trainer: Callable[..., Any],
) -> None:
    trainer = make_trainer("nnUNetTrainer_SwinUNETR_MAPO_tiny", "3d_fullres", plans=PLANS)
    with pytest.raises(InputError, match=r"SwinUNETR cannot take .*take: \[32, 32, 64\]\."):
        trainer.on_train_start()
