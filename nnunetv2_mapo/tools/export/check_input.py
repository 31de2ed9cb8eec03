"""One window of a real case, to show whether two networks compute the same."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import (
    convert_labelmap_to_one_hot,
    determine_num_input_channels,
)
from numpy.typing import NDArray

from nnunetv2_mapo.guards.checks import check_preprocessed
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.tools.models import TrainedModel, find_previous_stage

CASE = "a real case"
WITHOUT_STAGE = "a real case, with zeros as the previous stage of its cascade"
NOISE = "noise"


class CheckInput(NamedTuple):
    """Network input of one window.

    Attributes:
        image: Preprocessed, a cascade's previous stage stacked, shape `(channels, z, y, x)`,
            float32; no axis longer than the patch, z is 1 in 2D configurations.
        kind: `CASE`, `WITHOUT_STAGE` or `NOISE`.
        detail: Which case it is, or why it is noise.
    """

    image: NDArray[np.float32]
    kind: str
    detail: str


def make_check_input(model: TrainedModel) -> CheckInput:
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
    except InputError as error:
        reason = str(error)
    # what a missing environment variable, missing and damaged files raise
    except (
        AssertionError, OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError,
    ) as error:  # fmt: skip
        name = model.plans_manager.dataset_name
        reason = f"no preprocessed case of {name} can be read ({type(error).__name__}: {error})"
    noise = np.random.default_rng(0).normal(size=(num_channels, *window))
    return CheckInput(noise.astype(np.float32), NOISE, reason)


def _cut_case(model: TrainedModel, window: tuple[int, ...], num_channels: int) -> CheckInput:
    name = model.plans_manager.dataset_name
    folder = Path(nnUNet_preprocessed.require(), name, model.configuration_manager.data_identifier)
    check_preprocessed(folder, name, model.configuration)
    dataset_class = infer_dataset_class(str(folder))
    identifiers = sorted(dataset_class.get_identifiers(str(folder)))
    if not identifiers:
        message = f"{folder} has no case"
        raise InputError(message)
    previous = find_previous_stage(model)
    has_stage = previous is not None and previous.is_dir()
    segmented = dataset_class.get_identifiers(str(previous)) if has_stage else ()
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
    elif previous is not None:
        missing = np.zeros((num_channels - len(image), *image.shape[1:]), image.dtype)
        image = np.vstack((image, missing))
    if len(image) != num_channels:
        message = f"{folder} has {len(image)} channels; the network takes {num_channels}"
        raise InputError(message)
    kind = WITHOUT_STAGE if previous is not None and stage is None else CASE
    return CheckInput(np.ascontiguousarray(image, np.float32), kind, case)


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
