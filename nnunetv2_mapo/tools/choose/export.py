"""Candidates as segmentations in the geometry of their images, for any other program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from numpy.typing import NDArray

from nnunetv2_mapo.tools.choose.folder import ENTRY, ChoicesFolder
from nnunetv2_mapo.tools.models import TrainedModel


def export_candidates(folder: ChoicesFolder, model: TrainedModel, output: Path) -> int:
    """Write each candidate as `CASE_candidate_K` with nnU-Net's own resampling and writer.

    Returns their number; K is the candidate's number in the record, 0 the plain prediction.
    """
    number = 0
    for identifier in folder.find_images():
        kept = folder.read_image(identifier)
        properties = {name: value for name, value in kept.properties.items() if name != ENTRY}
        for place, candidate in enumerate(kept.candidates):
            export_prediction_from_logits(
                to_logits(candidate, model.label_manager), properties,
                model.configuration_manager, model.plans_manager, model.dataset_json,
                str(output / f"{identifier}_candidate_{place}"), num_threads_torch=1,
            )  # fmt: skip
            number += 1
    return number


def to_logits(candidate: NDArray[np.int16], label_manager: Any) -> NDArray[np.float32]:
    """Logits `(C, *spatial)` of which nnU-Net makes a label map, `(*spatial)`, again.

    ±8 as a logit is a probability of nearly 1 or 0, so that resampled ones are linear between.
    """
    if label_manager.has_regions:
        heads = [np.isin(candidate, region) for region in label_manager.foreground_regions]
    else:
        heads = [candidate == label for label in range(label_manager.num_segmentation_heads)]
    return np.where(np.stack(heads), 8, -8).astype(np.float32)
