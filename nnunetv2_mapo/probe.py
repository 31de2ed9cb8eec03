"""One window of a real case, to show whether two networks compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import (
    convert_labelmap_to_one_hot,
    determine_num_input_channels,
)
from numpy.typing import NDArray

from nnunetv2_mapo.checks import InputError, check_preprocessed
from nnunetv2_mapo.trained_model import TrainedModel

NOISE = "noise"


class Probe(NamedTuple):
    """Network input of one window.

    Attributes:
        image: Preprocessed, a cascade's previous stage stacked, shape `(channels, z, y, x)`,
            float32; no axis longer than the patch, z is 1 in 2D configurations.
        case: Case identifier, or `"noise"`.
        reason: Why it is noise; empty for a case.
    """

    image: NDArray[np.float32]
    case: str
    reason: str


def make_probe(model: TrainedModel) -> Probe:
    """Window around foreground of the data set's first training case; noise if there is none.

    In a cascade it is the first case that the previous stage segmented; if that segmented none,
    its channels are zero.
    """
    num_channels = determine_num_input_channels(
        model.plans_manager, model.configuration_manager, model.dataset_json
    )
    patch_size = tuple(model.configuration_manager.patch_size)
    window = (1,) * (3 - len(patch_size)) + patch_size
    try:
        return _cut_case(model, window, num_channels)
    # what a missing environment variable, missing and damaged files raise
    except (InputError, AssertionError, OSError, RuntimeError, ValueError, KeyError) as error:
        noise = np.random.default_rng(0).normal(size=(num_channels, *window))
        return Probe(noise.astype(np.float32), NOISE, str(error))


def _cut_case(model: TrainedModel, window: tuple[int, ...], num_channels: int) -> Probe:
    name = model.plans_manager.dataset_name
    folder = Path(nnUNet_preprocessed.require(), name, model.configuration_manager.data_identifier)
    check_preprocessed(folder, name, model.configuration)
    dataset_class = infer_dataset_class(str(folder))
    identifiers = sorted(dataset_class.get_identifiers(str(folder)))
    previous = _find_previous_stage(model)
    segmented = dataset_class.get_identifiers(str(previous)) if previous.is_dir() else ()
    case, *_ = sorted(set(identifiers) & set(segmented)) or identifiers
    stage = str(previous) if case in segmented else None
    dataset = dataset_class(str(folder), [case], folder_with_segs_from_previous_stage=stage)
    data, _, previous_stage, properties = dataset.load_case(case)
    place = place_window(data.shape[1:], window, properties["class_locations"])
    image = data[(slice(None), *place)]
    if previous_stage is not None:
        labels = model.label_manager.foreground_labels
        one_hot = convert_labelmap_to_one_hot(previous_stage[place], labels, image.dtype)
        image = np.vstack((image, one_hot))
    elif model.configuration_manager.previous_stage_name is not None:
        missing = np.zeros((num_channels - len(image), *image.shape[1:]), image.dtype)
        image = np.vstack((image, missing))
    if len(image) != num_channels:
        message = f"{folder} has {len(image)} channels; the network takes {num_channels}"
        raise InputError(message)
    return Probe(np.ascontiguousarray(image, np.float32), case, "")


def place_window(
    shape: tuple[int, ...], window: tuple[int, ...], class_locations: dict[Any, Any]
) -> tuple[slice, ...]:
    """Where a window is cut: around a voxel of the first class that has any, else in the middle.

    Args:
        shape: Of the image in voxels, `(z, y, x)`.
        window: In voxels; an axis that is longer than the image's is cut to that.
        class_locations: Of nnU-Net's properties: some voxels of each class, each `(0, z, y, x)`.
    """
    centre = [size // 2 for size in shape]
    for places in class_locations.values():
        if len(places):
            centre = [int(place) for place in places[len(places) // 2][1:]]
            break
    starts = [
        min(max(middle - length // 2, 0), max(size - length, 0))
        for middle, length, size in zip(centre, window, shape, strict=True)
    ]
    return tuple(
        slice(start, min(start + length, size))
        for start, length, size in zip(starts, window, shape, strict=True)
    )


def _find_previous_stage(model: TrainedModel) -> Path:
    """Where nnU-Net's trainer puts the previous stage's segmentations; nowhere if it has none."""
    previous = model.configuration_manager.previous_stage_name
    stage = f"{model.trainer_name}__{model.plans_manager.plans_name}__{previous}"
    return model.folder.parent / stage / "predicted_next_stage" / model.configuration
