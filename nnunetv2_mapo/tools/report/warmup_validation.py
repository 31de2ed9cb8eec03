"""Validation of the weights after the warm-up, as nnU-Net validates the final ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor
from tqdm import tqdm

from nnunetv2_mapo.method.cases import load_case
from nnunetv2_mapo.support.files import hash_weights, read_sealed, write_sealed
from nnunetv2_mapo.tools.models import TrainedModel

FOLDER = "validation_warmup"
ORIGIN = "origin.json"


def predict_validation(
    model: TrainedModel, weights: dict[str, Tensor], cases: Any, folder: Path, device: torch.device
) -> None:
    """Segment cases that are not in the folder yet, with nnU-Net's settings of its validation.

    A segmentation appears when it is complete. Those of other weights are deleted first.

    Args:
        model: Its network gets the weights.
        weights: State dict of its network.
        cases: nnU-Net's dataset of the validation cases.
        folder: Where the segmentations go.
        device: Where the network lies.
    """
    origin, unfinished = {"weights": hash_weights(weights)}, folder / "unfinished"
    if read_sealed(folder / ORIGIN) != origin:
        shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / ORIGIN, origin)
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=True,
        perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        model.network, model.plans_manager, model.configuration_manager, [weights],
        model.dataset_json, model.trainer_name, model.mirroring_axes,
    )  # fmt: skip
    ending = model.dataset_json["file_ending"]
    missing = [case for case in cases.identifiers if not (folder / f"{case}{ending}").is_file()]
    for identifier in tqdm(missing, desc="warm-up's validation", unit="case"):
        image, _ = load_case(cases, model.label_manager, identifier)
        *_, properties = cases.load_case(identifier)
        logits = predictor.predict_logits_from_preprocessed_data(image).cpu()
        export_prediction_from_logits(
            logits, properties, model.configuration_manager, model.plans_manager,
            model.dataset_json, str(unfinished / identifier), False,
        )  # fmt: skip
        (unfinished / f"{identifier}{ending}").replace(folder / f"{identifier}{ending}")
    shutil.rmtree(unfinished)  # some formats have a file beside each segmentation
