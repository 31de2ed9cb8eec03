"""Images to predict and their ground truth: nnU-Net's names, checked before all else."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

from nnunetv2_mapo.method.cases import channels_of
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.tools.evaluate.case_metrics import CaseFiles, Segmentation, read_reference

_ADVICE = "name the ground truth of these very images with --labels"


def find_cases(arguments: Namespace, predictor: nnUNetPredictor) -> dict[str, list[str]]:
    """Images of each case by its name, sorted: one file a channel, or one with all channels.

    Args:
        arguments: Of the command line.
        predictor: With the model that is to segment them.

    Raises:
        InputError: There is none, a file is missing, or one does not fit the model.
        EvaluationError: A ground truth cannot be read or does not lie on its image.
    """
    folder, ending = str(arguments.input), predictor.dataset_json["file_ending"]
    files = sorted(path.name for path in arguments.input.glob(f"*{ending}"))
    names = map(str, get_identifiers_from_splitted_dataset_folder(folder, ending))
    cases = {name: create_paths_fn(folder, files, ending, name) for name in names}
    num_files = max([1, *map(len, cases.values())])
    needed, message = predictor.configuration_manager.previous_stage_name, ""
    if not cases:
        message = f"{folder} has no file that ends in {ending}, as dataset.json demands."
    elif odd := [name for name in cases if len(cases[name]) != num_files]:
        message = (
            f"{folder} does not have all files of {odd[0]}: each case needs one for each channel, "
            f"with its number: CASE_0000{ending}, CASE_0001{ending} …"
        )
    elif bool(needed) != bool(arguments.prev_stage_predictions):
        message = (
            f"The model's previous stage is {needed or 'none'}: -prev_stage_predictions takes its "
            "segmentations, and is left out where there is none."
        )
    for other in filter(None, (arguments.prev_stage_predictions, arguments.labels)):
        if missing := [name for name in cases if not (other / f"{name}{ending}").is_file()]:
            message = message or f"There is no {missing[0]}{ending} in {other}."
    if message:
        raise InputError(message)
    for name in cases if arguments.labels else [*cases][:1]:
        _check(cases[name], arguments.labels and arguments.labels / f"{name}{ending}", predictor)
    return cases


def _check(images: list[str], truth: Path | None, predictor: nnUNetPredictor) -> None:
    """Channels are the model's; the ground truth lies on the image and has the model's labels."""
    reader = predictor.plans_manager.image_reader_writer_class
    channels, manager = channels_of(predictor.dataset_json), predictor.label_manager
    image, properties = reader().read_images(images)
    if len(image) != len(channels):
        needed = f"the model needs {len(channels)}: {', '.join(channels)}"
        message = f"{images[0]} has {len(image)} channels; {needed}."
        raise InputError(message)
    if truth is None:
        return
    lies_on = Segmentation(image[0], tuple(map(float, properties["spacing"])))
    labels = read_reference(CaseFiles(str(truth), images[0]), lies_on, reader, _ADVICE).labels
    if unknown := {*np.unique(labels).tolist()} - {*manager.all_labels, manager.ignore_label}:
        values = ", ".join(f"{value:g}" for value in sorted(unknown)[:10])
        message = f"{truth} has the values {values}, which are no labels of the model: {_ADVICE}."
        raise InputError(message)
