"""Ground truth of images to predict, which must lie on them and have nnU-Net's labels."""

from __future__ import annotations

import numpy as np
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray

from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.tools.evaluate.case_metrics import (
    CaseFiles,
    EvaluationError,
    Segmentation,
    read_reference,
)
from nnunetv2_mapo.tools.uncertainty.prediction_input import ImageFiles

_ADVICE = "name the ground truth of these very images with --labels"


def read_ground_truth(case: ImageFiles, predictor: nnUNetPredictor) -> NDArray[np.int16]:
    """Read the ground truth of a case.

    Args:
        case: With a ground truth.
        predictor: With the model that is to segment it.

    Returns:
        Labels of `dataset.json`, shape `(z, y, x)`.

    Raises:
        InputError: It or the image cannot be read, it has another shape or spacing than the image,
            or labels that are not in `dataset.json`.
    """
    files = CaseFiles(str(case.truth), case.images[0])
    reader = predictor.plans_manager.image_reader_writer_class
    try:
        image, properties = reader().read_images(case.images[:1])
    except Exception as error:  # each image library has its own
        message = f"{files.prediction} cannot be read ({type(error).__name__}: {error})."
        raise InputError(message) from error
    lies_on = Segmentation(image[0], tuple(map(float, properties["spacing"])))
    try:
        labels = read_reference(files, lies_on, reader, _ADVICE).labels
    except EvaluationError as error:
        raise InputError(str(error)) from error
    manager = predictor.label_manager
    known = {*manager.all_labels, manager.ignore_label}
    if unknown := sorted(set(np.unique(labels).tolist()) - known):
        shown = ", ".join(f"{value:g}" for value in unknown[:10])
        message = (
            f"{files.reference} cannot be used as ground truth: it has the values {shown}, which "
            f"are no labels of the model's dataset.json. {_ADVICE.capitalize()}."
        )
        raise InputError(message)
    return labels.astype(np.int16)
