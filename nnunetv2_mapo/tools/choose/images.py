"""Unlabelled images: found, checked, and preprocessed by nnU-Net's own reader and preprocessor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder
from numpy.typing import NDArray

from nnunetv2_mapo.support.errors import CommandError, InputError
from nnunetv2_mapo.tools.models import TrainedModel


class ImageError(InputError):
    """An image that cannot be asked about; the message says why."""


class Preprocessed(NamedTuple):
    """An image as the network sees it."""

    image: NDArray[np.float32]  # `(channels, *spatial)`
    segmentation: NDArray[Any]  # ground truth in nnU-Net's labels, `(1, *spatial)`; of no meaning
    # without one
    properties: dict[str, Any]  # nnU-Net's
    display: list[tuple[float, float]] | None  # of each channel, what black and full colour became


def find_images(folder: Path, model: TrainedModel) -> dict[str, list[str]]:
    """Files of each image by its identifier, sorted: one a channel, or one with all channels.

    Raises:
        CommandError: There is none, a channel is missing, or the model is a cascade's second stage.
    """
    ending, channels = model.dataset_json["file_ending"], model.channel_names
    files = sorted(path.name for path in folder.glob(f"*{ending}"))
    names = sorted(map(str, get_identifiers_from_splitted_dataset_folder(str(folder), ending)))
    images = {name: create_paths_fn(str(folder), files, ending, name) for name in names}
    example = f"CASE_0000{ending}"
    if len(channels) > 1:
        example += f", CASE_0001{ending} …"
    message = ""
    if not images:
        message = f"{folder} has no image {example}, as nnU-Net names them by dataset.json."
    if model.configuration_manager.previous_stage_name:
        message = (
            f"{model.configuration} is the second stage of a cascade, whose candidates would need "
            "the first stage's segmentations: take a model of another configuration."
        )
    for name, paths in images.items():
        if len(paths) not in (1, len(channels)) or name.endswith("_seg"):
            message = (
                f"{folder} has {len(paths)} files of {name}: the model needs one for each of its "
                f"channels ({', '.join(channels)}), {example}; and no name may end in _seg."
            )
    if message:
        raise CommandError(message)
    return images


def preprocess(
    model: TrainedModel, files: Sequence[str], truth: Path | None = None
) -> Preprocessed:
    """Read an image, and its ground truth if there is one, and preprocess it as nnU-Net predicts.

    Raises:
        ImageError: A file cannot be read, or the image is none of the model's.
    """
    reader = model.plans_manager.image_reader_writer_class()
    segmentation = None
    try:
        "".join(files).encode()  # SimpleITK ends the process at a name that is not UTF-8
        image, properties = reader.read_images(files)
        if truth is not None:
            segmentation, _ = reader.read_seg(str(truth))
    except Exception as error:  # readers of several libraries, each with errors of its own
        message = f"{files[0]} cannot be read ({type(error).__name__}: {error})."
        raise ImageError(message) from error
    check_image(image, files[0], model)
    if segmentation is not None and segmentation.shape[1:] != image.shape[1:]:
        message = (
            f"{truth} has the shape {segmentation.shape[1:]}, its image {image.shape[1:]}: it is "
            "the ground truth of another image."
        )
        raise ImageError(message)
    preprocessor = model.configuration_manager.preprocessor_class(verbose=False)
    data, segmentation, properties = preprocessor.run_case_npy(
        image, segmentation, properties, model.plans_manager, model.configuration_manager,
        model.dataset_json,
    )  # fmt: skip
    data = np.asarray(data, np.float32)
    display = None
    if is_rgb(model):
        order = [0, *(axis + 1 for axis in model.plans_manager.transpose_forward)]
        box = bounding_box_to_slice(properties["bbox_used_for_cropping"])
        cropped = image.transpose(order)[(slice(None), *box)]
        # normalised by the voxels that are not 0, or by all: linear inside in either case
        before, after = cropped[:, create_nonzero_mask(cropped)], data[:, segmentation[0] >= 0]
        if before.size and after.size:
            display = find_colours(before, after)
    return Preprocessed(data, segmentation, properties, display)


def is_rgb(model: TrainedModel) -> bool:
    """Whether the images are coloured photographs."""
    reader = model.plans_manager.image_reader_writer_class.__name__
    return len(model.channel_names) == 3 and reader.startswith("NaturalImage")


def find_colours(before: NDArray[Any], after: NDArray[np.float32]) -> list[tuple[float, float]]:
    """What 0 and 255 of each channel have become, so that a page can show the real colours.

    nnU-Net's normalisation of a channel is linear, and resampling changes its mean and standard
    deviation little. A channel of one value keeps it.

    Args:
        before: The same voxels as nnU-Net crops them, `(channels, ...)`.
        after: As it has normalised and resampled them, `(channels, ...)`.
    """
    found = []
    for old, new in zip(before.astype(np.float64), after.astype(np.float64), strict=True):
        slope = new.std() / old.std() if min(old.std(), new.std()) > 1e-6 else 1.0
        black = new.mean() - slope * old.mean()
        found.append((float(black), float(black + 255 * slope)))
    return found


def check_image(image: NDArray[Any], name: str, model: TrainedModel) -> None:
    """Refuse an image, `(channels, *spatial)`, of other channels or another dimension.

    Raises:
        ImageError: It is.
    """
    channels, shape = model.channel_names, image.shape[1:]
    if len(image) != len(channels):
        message = (
            f"{name} has {len(image)} channels, the model needs {len(channels)} "
            f"({', '.join(channels)})."
        )
        raise ImageError(message)
    if not np.isfinite(image).all():
        message = f"{name} has voxels that are NaN or infinite."
        raise ImageError(message)
    median = model.plans_manager.plans.get("original_median_shape_after_transp", (2, 2, 2))
    is_flat, are_flat = 1 in shape, 1 in map(int, median)
    if is_flat != are_flat:
        kinds = {True: "a single slice", False: "a volume"}
        message = (
            f"{name} is {kinds[is_flat]} of {' x '.join(map(str, shape))} voxels, the model's "
            f"training images are {'slices' if are_flat else 'volumes'}."
        )
        raise ImageError(message)
