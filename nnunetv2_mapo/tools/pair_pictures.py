"""Pictures of preference pairs: image, ground truth, chosen, rejected and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries
from skimage.transform import resize

from nnunetv2_mapo.method.cases import load_case
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.examples import Sample, choose_samples
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.store import MinedRound, Round, SampleRecord, StoreError
from nnunetv2_mapo.method.windows import find_units
from nnunetv2_mapo.tools.models import TrainedModel

# Colours of the classes that colour-blind people tell apart (Okabe and Ito); then again.
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")
DISAGREEMENT = COLOURS.index("#d55e00") + 1  # class that is painted in red
LONGEST_SIDE = 288  # pixels of a picture
_OPACITY = 0.35  # of the inside of a segmentation; its border is opaque
_RGB = NDArray[np.uint8]


class PairPictures(NamedTuple):
    """Pictures of one pair.

    Attributes:
        title: Which pair.
        pictures: Caption and pixels of each picture; these have the shape `(y, x, 3)`.
    """

    title: str
    pictures: list[tuple[str, _RGB]]


def paint_pairs(model: TrainedModel, dataset: Any, mined: MinedRound) -> list[PairPictures]:
    """Pictures of the pairs of a round with the largest, the median and the smallest gap.

    Args:
        model: Whose training mined the round.
        dataset: nnU-Net's dataset of its training cases.
        mined: The round.

    Raises:
        StoreError: The file of a pair is missing or damaged.
    """
    painted = []
    for sample in choose_samples(mined.cases):
        image, _ = load_case(dataset, model.label_manager, sample.identifier)
        stack = read_stack(mined, sample.identifier)
        plane = _find_slice(model, mined, sample, stack)
        title = f"{sample.identifier}: Dice gap {sample.gap:.3f}"
        if stack.shape[1] > 1:
            title += f", slice {plane + 1} of {stack.shape[1]}"
        pictures = _paint_slice(model, sample.record, image.numpy()[:, plane], stack[:, plane])
        painted.append(PairPictures(title, pictures))
    return painted


def read_stack(mined: MinedRound, identifier: str) -> NDArray[np.int16]:
    """Channels of a case, see `store.stack_preferences`.

    Raises:
        StoreError: Its file is missing or damaged.
    """
    stored = Round(mined.folder, mined.origin)
    if identifier not in stored.find_finished([identifier]).records:
        message = f"{stored.path(identifier)} is missing or damaged."
        raise StoreError(message)
    stack: NDArray[np.int16] = np.asarray(stored.open_stack(identifier)[:])
    return stack


def _find_slice(
    model: TrainedModel, mined: MinedRound, sample: Sample, stack: NDArray[np.int16]
) -> int:
    """Slice in which the pair of a sample differs most."""
    config = MAPOConfig.from_dict(mined.origin["settings"])
    patch_size, shape = model.configuration_manager.patch_size, stack.shape[1:]
    unit = config.selection_unit(len(patch_size))
    place = find_units(shape, patch_size, unit, config.tile_step_size)[sample.number]
    differing = np.zeros(shape, bool)
    differing[place] = (stack[1] != stack[2])[place]
    return int(differing.sum((1, 2)).argmax())


def _paint_slice(
    model: TrainedModel,
    record: SampleRecord,
    image: NDArray[np.float32],
    stack: NDArray[np.int16],
) -> list[tuple[str, _RGB]]:
    """Caption and pixels of each picture of a slice, shapes `(channels, y, x)`."""
    labels, spacing = model.labels, model.configuration_manager.spacing[-2:]
    truth, chosen, rejected = stack[:3]
    target = labels.target_map(torch.from_numpy(truth)).numpy()
    is_colour = [name.lower()[:1] for name in model.channel_names] == ["r", "g", "b"]
    grey = enlarge(paint_image(image if is_colour else image[:1]), spacing)
    share = record.num_disagreeing / record.num_voxels
    layers = {
        "ground truth": to_classes(target, labels),
        f"chosen, Dice {record.dice_chosen:.3f}": to_classes(chosen, labels),
        f"rejected, Dice {record.dice_rejected:.3f}": to_classes(rejected, labels),
        f"disagreement, {share:.1%} of the voxels": (chosen != rejected) * DISAGREEMENT,
    }
    pictures = [
        (name, paint_classes(grey, enlarge(each, spacing))) for name, each in layers.items()
    ]
    return [("image", grey), *pictures]


def enlarge(plane: NDArray[Any], spacing: Sequence[float]) -> NDArray[Any]:
    """Enlarge or shrink a slice to `LONGEST_SIDE` in its true proportions, without interpolation.

    Args:
        plane: Shape `(y, x, …)`.
        spacing: Of a voxel in y and x, in mm.
    """
    extent = np.array(plane.shape[:2]) * np.array(spacing)
    size = np.maximum(1, np.round(LONGEST_SIDE * extent / extent.max())).astype(int)
    enlarged: NDArray[Any] = resize(plane, size, order=0, preserve_range=True, anti_aliasing=False)
    return enlarged.astype(plane.dtype)


def paint_image(channels: NDArray[np.floating]) -> _RGB:
    """Slice of an image as grey values, or as colours.

    Args:
        channels: Shape `(1, y, x)`, or `(3, y, x)` for red, green and blue.

    Returns:
        Shape `(y, x, 3)`; each channel from its 0.5 to its 99.5 percentile.
    """
    low, high = np.percentile(channels, (0.5, 99.5), axis=(1, 2), keepdims=True)
    scaled = np.clip((channels - low) / np.maximum(high - low, 1e-8), 0, 1)
    pixels = np.broadcast_to(np.moveaxis(scaled, 0, -1) * 255, (*channels.shape[1:], 3))
    return pixels.round().astype(np.uint8)


def paint_classes(image: _RGB, classes: NDArray[np.integer]) -> _RGB:
    """Lay a segmentation over an image, its borders opaque.

    Args:
        image: Shape `(y, x, 3)`.
        classes: 0 is background, shape `(y, x)`.
    """
    palette = np.array([tuple(bytes.fromhex(colour[1:])) for colour in COLOURS])
    colours = palette[(classes - 1) % len(COLOURS)]
    is_border = find_boundaries(classes, mode="inner")
    opacity = np.where(is_border, 1, _OPACITY * (classes > 0))[..., None]
    painted: _RGB = ((1 - opacity) * image + opacity * colours).round().astype(np.uint8)
    return painted


def to_classes(label_map: NDArray[np.integer], labels: Labels) -> NDArray[np.integer]:
    """Class of each voxel for painting, 0 is background; of several regions the last one."""
    if labels.regions is None:
        return label_map
    classes: NDArray[np.integer] = np.frexp(label_map.astype(float))[1]  # highest bit, from 1
    return classes


def name_colours(labels: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and colour of each foreground class or region, by the labels of `dataset.json`."""
    names = [name for name in labels if name not in ("background", "ignore")]
    if not any(isinstance(labels[name], list) for name in names):
        names.sort(key=lambda name: int(labels[name]))  # regions are heads in the file's order
    return [(name, COLOURS[place % len(COLOURS)]) for place, name in enumerate(names)]
