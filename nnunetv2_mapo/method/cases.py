"""nnU-Net's labels and cases in the form in which mining takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_mapo.method.labels import Labels


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


def load_case(
    dataset: Any,
    label_manager: Any,
    identifier: str,
    box: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, NDArray[Any]]:
    """Network input and ground truth of a case, as nnU-Net's validation makes them.

    The image has the previous stage's one-hot segmentation behind it, if there is one, shape
    `(channels, *spatial)`, float32; the segmentation has the shape `(1, *spatial)`. `dataset` is
    nnU-Net's of any kind. `box` holds first and end voxel along each axis, which may lie outside
    the case, where the segmentation is -1; None: the whole case.
    """
    data, segmentation, previous_stage, _ = dataset.load_case(identifier)

    def read(array: Any, outside: int) -> Any:
        return array[:] if box is None else crop_and_pad_nd(array, box, outside)

    image = read(data, 0)
    if previous_stage is not None:
        labels = label_manager.foreground_labels
        one_hot = convert_labelmap_to_one_hot(read(previous_stage, 0), labels, image.dtype)
        image = np.vstack((image, one_hot))
    return torch.from_numpy(np.array(image, dtype=np.float32)), read(segmentation, -1)
