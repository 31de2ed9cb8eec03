"""Logits of a model by nnU-Net in a process of its own, `with` this package or `without` it.

    python stock_logits.py MODE MODEL_FOLDER CHECKPOINT DEVICE OUTPUT_FOLDER FOLD ...

Imports nothing of this package, and nnU-Net only once this package is hidden.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

HIDDEN = "nnunetv2_mapo"


def hide_package() -> None:
    """Make this process one in which this package is not installed.

    Trainer modules that import it are not there for nnU-Net's search either: those of
    `trainer_configs`, wherever they are, and a user's own variants.
    """
    sys.modules[HIDDEN] = None  # type: ignore[assignment]  # to Python: not installed
    import_module = importlib.import_module

    def import_or_miss(name: str, package: str | None = None) -> ModuleType:
        try:
            return import_module(name, package)
        except ModuleNotFoundError as error:
            if error.name and error.name.partition(".")[0] == HIDDEN:
                error.name = name  # the search goes on where the module itself is missing
            raise

    importlib.import_module = import_or_miss


def write_logits(
    mode: str, model: str, checkpoint: str, device: str, output_folder: str, *folds: str
) -> None:
    """Write `MODE_FOLD.npy`: logits of one patch of noise, shape `(heads, z, y, x)`, float16."""
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    predictor = nnUNetPredictor(
        tile_step_size=1, use_gaussian=False, use_mirroring=False, device=torch.device(device)
    )
    for fold in folds:
        predictor.initialize_from_trained_model_folder(model, (fold,), checkpoint)
        plan = predictor.configuration_manager
        shape = (
            determine_num_input_channels(predictor.plans_manager, plan, predictor.dataset_json),
            *(1, *plan.patch_size)[-3:],  # a 2D patch is one slice
        )
        noise = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
        # nnU-Net lets cudnn choose the fastest algorithm, which need not be the same one twice
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            logits = predictor.predict_logits_from_preprocessed_data(noise)
        np.save(Path(output_folder, f"{mode}_{fold}.npy"), logits.numpy())


if __name__ == "__main__":
    if sys.argv[1] == "without":
        hide_package()
    write_logits(*sys.argv[1:])
