"""Maps of a case in the geometry of its image, brought there and written by nnU-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_mapo.tools.uncertainty.uncertainty import predictive_entropy, vote_variance

_Volume = NDArray[np.float32]


class Maps(NamedTuple):
    """What the samples of a case say, in the geometry of its image as nnU-Net reads it."""

    probabilities: _Volume  # mean of each class or region, shape `(C, z, y, x)`
    entropy: _Volume  # predictive entropy in nats, shape `(z, y, x)`
    variance: _Volume  # vote variance, the same shape


def make_maps(statistics: _Volume, properties: dict[str, Any], predictor: nnUNetPredictor) -> Maps:
    """Bring statistics back to the image as nnU-Net exports probabilities.

    Args:
        statistics: Mean probabilities and shares of votes in the geometry of the network, shape
            `(2 C, *spatial)`.
        properties: nnU-Net's, of the preprocessed case.
        predictor: With the model.
    """
    plans, has_regions = predictor.plans_manager, predictor.label_manager.has_regions
    means, shares = np.split(statistics, 2)
    variance = vote_variance(shares, has_regions=has_regions)

    def export(volumes: _Volume, labels: LabelManager) -> _Volume:
        _, exported = convert_predicted_logits_to_segmentation_with_correct_shape(
            volumes, plans, predictor.configuration_manager, labels, properties,
            return_probabilities=True,
        )  # fmt: skip
        return np.asarray(exported)

    # In the place of the softmax, because these are probabilities but for what resampling does.
    labels = plans.get_label_manager(
        predictor.dataset_json, inference_nonlin=_clip if has_regions else _clip_to_sum_1
    )
    probabilities = export(means, labels)
    # As the foreground of two classes, which is 0 where nnU-Net has cropped the image.
    alone = LabelManager({"background": 0, "variance": 1}, None, inference_nonlin=_clip)
    return Maps(
        probabilities,
        predictive_entropy(probabilities, has_regions=has_regions),
        export(np.stack([np.zeros_like(variance), variance]), alone)[1],
    )


def _clip(values: Tensor) -> Tensor:
    return values.clamp(0, 1)


def _clip_to_sum_1(values: Tensor) -> Tensor:
    return _clip(values) / _clip(values).sum(0)


class _Floats(np.ndarray[Any, Any]):
    """Array of floats that stays one: nnU-Net's writers turn what they write into integers."""

    def astype(self, *_: Any, **__: Any) -> Any:
        return np.asarray(self, np.float32)


def write_map(
    volume: _Volume, properties: dict[str, Any], reader: type[BaseReaderWriter], path: Path
) -> None:
    """Write a NIfTI file with the geometry of the image.

    Args:
        volume: Shape `(z, y, x)`.
        properties: nnU-Net's, of the preprocessed case.
        reader: nnU-Net's, of the image.
        path: Ends in `.nii.gz`.
    """
    if not properties.keys() & {"sitk_stuff", "nibabel_stuff"}:  # photographs and stacks of TIFF
        num_axes = 2 if issubclass(reader, NaturalImage2DIO) else 3
        spacing = [float(size) for size in properties["spacing"][::-1][:num_axes]]
        direction = np.eye(num_axes).flatten().tolist()
        geometry = {"spacing": spacing, "origin": [0.0] * num_axes, "direction": direction}
        reader, properties = SimpleITKIO, {"sitk_stuff": geometry}
    reader().write_seg(volume.view(_Floats), str(path), properties)
