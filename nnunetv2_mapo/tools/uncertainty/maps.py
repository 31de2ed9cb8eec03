"""Maps of a case in the geometry of its image, brought there as nnU-Net does with probabilities."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray

from nnunetv2_mapo.support.files import complete_or_absent
from nnunetv2_mapo.tools.evaluate.case_metrics import SPACING_OF_2D_FILES
from nnunetv2_mapo.tools.uncertainty.uncertainty import predictive_entropy, vote_variance

_Volume = NDArray[np.float32]


class Maps(NamedTuple):
    """What the samples of a case say, in the geometry of its image as nnU-Net reads it.

    Attributes:
        probabilities: Mean probability of each class or region, shape `(C, z, y, x)`.
        entropy: Predictive entropy in nats, shape `(z, y, x)`.
        variance: Vote variance, the same shape.
    """

    probabilities: _Volume
    entropy: _Volume
    variance: _Volume


def make_maps(statistics: _Volume, properties: dict[str, Any], predictor: nnUNetPredictor) -> Maps:
    """Bring statistics back to the image as nnU-Net exports probabilities.

    Args:
        statistics: Mean probabilities and shares of votes in the geometry of the network, shape
            `(2 C, *spatial)`.
        properties: nnU-Net's, of the preprocessed case.
        predictor: With the model.
    """
    labels, plans = predictor.label_manager, predictor.plans_manager
    has_regions, num_heads = labels.has_regions, len(statistics) // 2
    variance = vote_variance(statistics[num_heads:], has_regions=has_regions)
    resampled = _resample(
        np.concatenate([statistics[:num_heads], variance[None]]), properties, predictor
    )
    probabilities = resampled[:-1].clip(0, 1)
    if not has_regions:
        probabilities /= probabilities.sum(0)
    box, shape = properties["bbox_used_for_cropping"], properties["shape_before_cropping"]
    probabilities = labels.revert_cropping_on_probabilities(probabilities, box, shape)
    variance = insert_crop_into_image(np.zeros(shape, np.float32), resampled[-1].clip(0), box)
    back = plans.transpose_backward
    probabilities = probabilities.transpose(0, *(axis + 1 for axis in back))
    return Maps(
        probabilities,
        predictive_entropy(probabilities, has_regions=has_regions),
        variance.transpose(back),
    )


def _resample(volumes: _Volume, properties: dict[str, Any], predictor: nnUNetPredictor) -> _Volume:
    """The arguments are those of `convert_predicted_logits_to_segmentation_with_correct_shape`."""
    configuration = predictor.configuration_manager
    spacing = [properties["spacing"][axis] for axis in predictor.plans_manager.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    current = configuration.spacing
    if len(current) < len(shape):
        current = [spacing[0], *current]
    resampled = configuration.resampling_fn_probabilities(volumes, shape, current, spacing)
    return np.array(resampled, dtype=np.float32)


def write_map(volume: _Volume, properties: dict[str, Any], path: Path) -> None:
    """Write a NIfTI file with the geometry of the image; it appears complete or not at all.

    Args:
        volume: Shape `(z, y, x)`.
        properties: nnU-Net's, of the preprocessed case.
        path: Ends in `.nii.gz`.

    Raises:
        WriteError: The disk is full, or something else keeps the file from being written.
    """
    with (
        complete_or_absent(path, volume.nbytes) as unfinished,
        TemporaryDirectory(dir=path.parent) as folder,
    ):
        named = Path(folder) / path.name  # both libraries take the format from the ending
        if "nibabel_stuff" in properties:
            nibabel.save(_to_nibabel(volume, properties["nibabel_stuff"]), named)
        else:
            SimpleITK.WriteImage(_to_sitk(volume, properties), str(named), useCompression=True)
        named.replace(unfinished)


def _to_nibabel(volume: _Volume, geometry: dict[str, Any]) -> nibabel.Nifti1Image:
    """As nnU-Net's readers with nibabel write segmentations."""
    original = geometry["original_affine"]
    reoriented = geometry.get("reoriented_affine")  # of the reader that turns images to RAS
    held = original if reoriented is None else reoriented
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0).astype(np.float32), held)
    if reoriented is None:
        return image
    from_ras = ornt_transform(axcodes2ornt("RAS"), io_orientation(original))
    reverted: nibabel.Nifti1Image = image.as_reoriented(from_ras)
    return reverted


def _to_sitk(volume: _Volume, properties: dict[str, Any]) -> SimpleITK.Image:
    """As nnU-Net's readers with SimpleITK write segmentations; spacing alone where no more is."""
    geometry = properties.get("sitk_stuff") or {"spacing": _find_spacing(volume, properties)}
    spacing = [float(size) for size in geometry["spacing"]]
    image = SimpleITK.GetImageFromArray(
        np.ascontiguousarray(volume[0] if len(spacing) == 2 else volume, dtype=np.float32)
    )
    image.SetSpacing(spacing)
    if "origin" in geometry:
        image.SetOrigin(geometry["origin"])
        image.SetDirection(geometry["direction"])
    if "original_orientation" in geometry:  # of the reader that turns images to RAS
        image = SimpleITK.DICOMOrient(image, geometry["original_orientation"])
    return image


def _find_spacing(volume: _Volume, properties: dict[str, Any]) -> list[float]:
    """Spacing in x, y (, z); two values for a 2D file, to which nnU-Net gives a third axis."""
    *_, thickness, height, width = map(float, properties["spacing"])
    is_2d = len(volume) == 1 and math.isclose(thickness, SPACING_OF_2D_FILES * max(height, width))
    return [width, height] if is_2d else [width, height, thickness]
