"""Images to predict: nnU-Net's names of files, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

from nnunetv2_mapo.method.cases import channels_of
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.support.table import list_some


@dataclass(frozen=True)
class ImageFiles:
    """Files of a case.

    Attributes:
        identifier: Its name.
        images: One file a channel, or one with all channels.
        previous_stage: Segmentation of the previous stage of a cascade.
        truth: Ground truth.
    """

    identifier: str
    images: list[str]
    previous_stage: Path | None = None
    truth: Path | None = None


def find_images(
    folder: Path, predictor: nnUNetPredictor, previous_stage: Path | None, truth: Path | None
) -> list[ImageFiles]:
    """Cases of a folder, sorted.

    Args:
        folder: Of the images.
        predictor: With the model that is to segment them.
        previous_stage: Folder of the segmentations of a cascade's previous stage.
        truth: Folder of the ground truth; None if it is not needed.

    Raises:
        InputError: There is none, a file is missing, or the channels are not the model's.
    """
    ending = predictor.dataset_json["file_ending"]
    needed = predictor.configuration_manager.previous_stage_name
    if needed and previous_stage is None:
        message = (
            f"The model is the second stage of a cascade: give the folder of the segmentations of "
            f"{needed} with -prev_stage_predictions."
        )
        raise InputError(message)
    if previous_stage and not needed:
        message = "The model is no second stage of a cascade: leave -prev_stage_predictions out."
        raise InputError(message)
    names = sorted(path.name for path in folder.glob(f"*{ending}"))
    identifiers = [
        str(i) for i in get_identifiers_from_splitted_dataset_folder(str(folder), ending)
    ]
    cases = [
        ImageFiles(
            identifier,
            create_paths_fn(str(folder), names, ending, identifier),
            previous_stage and previous_stage / f"{identifier}{ending}",
            truth and truth / f"{identifier}{ending}",
        )
        for identifier in identifiers
    ]
    _require_files(cases, folder, ending)
    _require_channels(cases, predictor)
    return cases


def _require_files(cases: Sequence[ImageFiles], folder: Path, ending: str) -> None:
    if not cases:
        message = (
            f"{folder} has no file that ends in {ending}, as the model's dataset.json demands."
        )
        raise InputError(message)
    if unnamed := [case.identifier for case in cases if not case.images]:
        message = (
            f"{folder} has files without the number of their channel, such as CASE_0000{ending}: "
            f"those that begin with {list_some(unnamed)}."
        )
        raise InputError(message)
    for what, paths in (
        ("segmentation of the previous stage", [case.previous_stage for case in cases]),
        ("ground truth", [case.truth for case in cases]),
    ):
        if missing := [path for path in paths if path and not path.is_file()]:
            names = list_some([path.name for path in missing])
            message = f"There is no {what} {names} in {missing[0].parent}."
            raise InputError(message)


def _require_channels(cases: Sequence[ImageFiles], predictor: nnUNetPredictor) -> None:
    counts = {case.identifier: len(case.images) for case in cases}
    first = cases[0]
    if odd := [name for name in counts if counts[name] != len(first.images)]:
        message = (
            f"{first.identifier} has {len(first.images)} files, but not so {list_some(odd)}: each "
            "case needs one file for each channel, _0000, _0001 …"
        )
        raise InputError(message)
    channels = channels_of(predictor.dataset_json)
    try:
        image, _ = predictor.plans_manager.image_reader_writer_class().read_images(first.images)
    except Exception as error:  # each image library has its own
        message = f"{first.images} cannot be read ({type(error).__name__}: {error})."
        raise InputError(message) from error
    if len(image) != len(channels):
        message = (
            f"{first.identifier} has {len(image)} channels; the model needs {len(channels)}: "
            f"{', '.join(channels)}."
        )
        raise InputError(message)
