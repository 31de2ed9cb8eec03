"""nnU-Net's labels and cases in the form in which mining takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.volumes import Volume
from nnunetv2_mapo.method.windows import read_window


def labels_of(label_manager: Any) -> Labels:
    """Meaning of the segmentation heads by nnU-Net's label manager."""
    regions = label_manager.foreground_regions if label_manager.has_regions else None
    return Labels(
        label_manager.num_segmentation_heads,
        regions and tuple(r if isinstance(r, tuple) else (r,) for r in regions),
        label_manager.ignore_label,
    )


def channels_of(dataset_json: Mapping[str, Any]) -> list[str]:
    """Name of each channel of the image, in their order, by the content of `dataset.json`."""
    # older data sets say "modality"; nnU-Net looks for that first
    names = dataset_json.get("modality") or dataset_json["channel_names"]
    return [str(name) for name in names.values()]


@dataclass(frozen=True)
class CaseImage:
    """Network input of a case, read from nnU-Net's files where it is asked for.

    The image has the previous stage's one-hot segmentation behind it, if there is one.
    """

    image: Volume  # `(channels, *spatial)`
    previous_stage: Volume | None  # `(*spatial)`
    labels: Sequence[Any]  # foreground labels of nnU-Net's label manager

    @property
    def shape(self) -> tuple[int, ...]:
        """With the channels of the previous stage, `(channels, *spatial)`."""
        num_more = 0 if self.previous_stage is None else len(self.labels)
        return (self.image.shape[0] + num_more, *self.image.shape[1:])

    def __getitem__(self, index: tuple[Any, ...]) -> Tensor:
        """All channels of a place, float32; `index` has an entry for each axis."""
        read = [np.asarray(self.image[index], np.float32)]
        if self.previous_stage is not None:
            previous = np.asarray(self.previous_stage[index[1:]])
            read += [convert_labelmap_to_one_hot(previous, self.labels, np.float32)]
        return torch.from_numpy(np.concatenate(read)[index[0]])


def open_case(dataset: Any, label_manager: Any, identifier: str) -> tuple[CaseImage, Volume]:
    """Network input and ground truth `(1, *spatial)` of a case, of which nothing is read yet.

    They are as nnU-Net's validation makes them; `dataset` is nnU-Net's of any kind.
    """
    data, segmentation, previous_stage, _ = dataset.load_case(identifier)
    labels = () if previous_stage is None else label_manager.foreground_labels
    return CaseImage(data, previous_stage, labels), segmentation


def load_case(
    dataset: Any,
    label_manager: Any,
    identifier: str,
    box: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, NDArray[Any]]:
    """What `open_case` opens, read: the image `(channels, *spatial)`, float32, and ground truth.

    `box` holds first and end voxel along each axis, which may lie outside the case, where the
    segmentation is -1; None: the whole case.
    """
    image, segmentation = open_case(dataset, label_manager, identifier)
    if box is None:
        return image[(slice(None),) * 4], segmentation[:]
    place = tuple(slice(*axis) for axis in box)
    return read_window(image, place, (0, 0, 0)), crop_and_pad_nd(segmentation, box, -1)
