"""Makes a folder of choices about images of which the truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from nnunetv2_mapo.method.choices import CHOICE, IMAGES, MODEL, VERSION, Answer, append_answer
from nnunetv2_mapo.support.files import hash_array

GOOD, SMALL, NOTHING = 1, 2, 3  # candidates; 0 is the plain prediction


def make_candidates(truth: np.ndarray) -> np.ndarray:
    """A plain prediction, and one that is right, one that is too small, and an empty one."""
    plain = np.roll(truth, 2, axis=-1)
    small = truth * (np.arange(truth.shape[-1]) < truth.shape[-1] // 2)
    return np.stack([plain, truth, small, np.zeros_like(truth)]).astype(np.int8)


def write_choices(
    folder: Path, trainer: Any, checkpoint: Path, *, noise: float = 0.01, **said: Any
) -> Path:
    """Write a folder of choices about noisy copies of a trainer's validation cases.

    Args:
        folder: Where to.
        trainer: nnU-Net's, initialised.
        checkpoint: That `model.json` names.
        noise: Standard deviation; 0 makes them the validation cases.
        said: Of each answer, if it is not the right choice.
    """
    (folder / IMAGES).mkdir(parents=True)
    dataset = trainer.get_tr_and_val_datasets()[1]
    rng = np.random.default_rng(0)
    for case in sorted(dataset.identifiers):
        image, segmentation, _, properties = dataset.load_case(case)
        image = image[:] + noise * rng.standard_normal(image.shape)
        candidates = make_candidates(segmentation[:][0].clip(0))
        patch_size = trainer.configuration_manager.patch_size
        blocks, chunks = comp_blosc2_params(image.shape, patch_size)
        name = str(folder / IMAGES / f"new_{case}")
        data = image.astype(np.float32)
        nnUNetDatasetBlosc2.save_case(data, candidates, properties, name, chunks, blocks)
        append_answer(folder, make_answer(f"new_{case}", data, candidates, **said))
    model = {
        "version": VERSION,
        "checkpoint": str(checkpoint),
        "configuration": trainer.configuration_name,
        "plans": trainer.plans_manager.plans,
        "dataset_json": trainer.dataset_json,
    }
    (folder / MODEL).write_text(json.dumps(model))
    return folder


def make_answer(image: str, data: np.ndarray, candidates: np.ndarray, **said: Any) -> Answer:
    """The right choice about an image."""
    content: dict[str, Any] = {
        "image": image, "image_sha256": hash_array(data),
        "candidates_sha256": hash_array(candidates), "shown": (2, 0, 3, 1), "verdict": CHOICE,
        "best": GOOD, "worst": NOTHING, "rater": "ada", "seconds": 2.5,
        "time": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Answer(**content | said)
