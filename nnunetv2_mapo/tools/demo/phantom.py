"""Images of a phantom: an organ with a lesion, next to a structure that looks like the organ.

The organ is grainy, its look-alike is smooth; both have the same mean intensity, so a network must
learn the texture. Wherever it is unsure, its candidates differ, which is what MAPO mines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

LABELS = {"background": 0, "organ": 1, "lesion": 2}
ENDING = ".nii.gz"

# Mean radii as a share of the image's shortest axis, by its number of axes: a ball of the same
# radius fills less of a volume than a disk fills of an area.
ORGAN_SIZE = {2: 0.21, 3: 0.26}
LESION_SIZE = {2: 0.11, 3: 0.14}


class Case(NamedTuple):
    """A phantom: intensities > 0, and values of `LABELS`, of one shape."""

    image: NDArray[np.float32]
    segmentation: NDArray[np.uint8]


def make_case(rng: np.random.Generator, shape: Sequence[int]) -> Case:
    """Make one phantom.

    Args:
        rng: Source of everything random; the same state gives the same phantom.
        shape: Voxels along each axis, 2 or 3 entries, each >= 24.
    """
    size, num_axes = min(shape), len(shape)
    centre = np.array(shape) / 2
    towards = rng.normal(size=num_axes)
    offset = 0.5 * centre * towards / np.abs(towards).max()  # halfway to a side
    masks = []
    for middle in (centre + offset, centre - offset):
        body = _make_blob(rng, shape, middle, ORGAN_SIZE[num_axes])
        inside = middle + size * rng.uniform(-0.08, 0.08, num_axes)
        masks += [body, _make_blob(rng, shape, inside, LESION_SIZE[num_axes]) & body]
    organ, lesion, lookalike, spot = masks

    # The mean of tissue is 1. Contrasts, chosen by eye: visible, but not at a glance.
    image = 1 + 0.15 * smooth_noise(rng, shape, size / 4)
    image += 0.3 * (organ | lookalike) + 0.4 * (lesion | spot & ~organ)
    image += 0.15 * smooth_noise(rng, shape, 0.8) * organ  # the grain
    image += 0.1 * smooth_noise(rng, shape, 0.5)
    segmentation = np.where(lesion, LABELS["lesion"], organ * LABELS["organ"])
    return Case(image.clip(0.01).astype(np.float32), segmentation.astype(np.uint8))


def _make_blob(
    rng: np.random.Generator, shape: Sequence[int], centre: NDArray[np.float64], size: float
) -> NDArray[np.bool_]:
    """Mask of an ellipsoid with a wavy surface; its centre in voxels, its size as `ORGAN_SIZE`."""
    radii = size * min(shape) * rng.uniform(0.8, 1.2, len(shape))
    grid = np.moveaxis(np.indices(shape), 0, -1)
    distance = (((grid - centre) / radii) ** 2).sum(-1)
    return np.asarray(distance + 0.15 * smooth_noise(rng, shape, min(shape) / 12) < 1)


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], sigma: float
) -> NDArray[np.float64]:
    """Gaussian noise of mean 0 and standard deviation 1, smoothed with `sigma` voxels."""
    noise = np.asarray(gaussian_filter(rng.normal(size=shape), sigma))
    return np.asarray((noise - noise.mean()) / noise.std())


def write_dataset(folder: Path, shape: Sequence[int], num_known: int, num_test: int) -> None:
    """Write phantoms in nnU-Net's raw format, in 2D as volumes of one slice.

    Args:
        folder: `nnUNet_raw/DatasetNNN_NAME`.
        shape: Voxels of each phantom.
        num_known: Cases for training and validation.
        num_test: Cases in `imagesTs` and `labelsTs`.
    """
    rng = np.random.default_rng(0)
    for part, name, num_cases in (("Tr", "case", num_known), ("Ts", "test", num_test)):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
        for number in range(num_cases):
            image, segmentation = make_case(rng, shape)
            write_image(folder / f"images{part}" / f"{name}_{number:03d}_0000{ENDING}", image)
            write_image(folder / f"labels{part}" / f"{name}_{number:03d}{ENDING}", segmentation)
    generate_dataset_json(str(folder), {0: "phantom"}, LABELS, num_known, ENDING)


def write_image(path: Path, image: NDArray[np.float32] | NDArray[np.uint8]) -> None:
    """Write an image or a segmentation as a volume with voxels of 1 mm."""
    volume = image.reshape((1,) * (3 - image.ndim) + image.shape)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume), str(path))
