"""Images of a phantom: an organ with a lesion, next to a structure that looks like the organ.

The organ is grainy, its look-alike is smooth; both have the same mean intensity, so a network must
learn the texture. Wherever it is unsure, its candidates differ, which is what MAPO mines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage import io

LABELS = {"background": 0, "organ": 1, "lesion": 2}

# Intensities; the mean of tissue is 1. Chosen by eye: visible, but not at a glance.
ORGAN_CONTRAST = 0.30
LESION_CONTRAST = 0.4
GRAIN = 0.15
NOISE = 0.10
BIAS = 0.15

# Mean radii as a share of the image's shortest axis, by its number of axes: a ball of the same
# radius fills less of a volume than a disk fills of an area.
ORGAN_SIZE = {2: 0.21, 3: 0.26}
LESION_SIZE = {2: 0.11, 3: 0.14}

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Case(NamedTuple):
    """A phantom.

    Attributes:
        image: Intensities, > 0, of the asked shape.
        segmentation: Values of `LABELS`, uint8, the same shape.
    """

    image: Image
    segmentation: NDArray[np.uint8]


def make_case(rng: np.random.Generator, shape: Sequence[int]) -> Case:
    """Make one phantom.

    Args:
        rng: Source of everything random; the same state gives the same phantom.
        shape: Voxels along each axis, 2 or 3 entries, each >= 24.

    Returns:
        Image with organ, lesion and look-alike, and the segmentation of organ and lesion.
    """
    centre = np.array(shape) / 2
    towards = rng.normal(size=len(shape))
    offset = 0.5 * centre * towards / np.abs(towards).max()  # halfway to a side
    organ = make_blob(rng, shape, centre + offset, ORGAN_SIZE[len(shape)])
    lookalike = make_blob(rng, shape, centre - offset, ORGAN_SIZE[len(shape)]) & ~organ
    lesion = make_blob(rng, shape, _point_inside(rng, organ), LESION_SIZE[len(shape)]) & organ
    spot = make_blob(rng, shape, _point_inside(rng, lookalike), LESION_SIZE[len(shape)]) & lookalike

    image = 1 + BIAS * smooth_noise(rng, shape, min(shape) / 4)
    image += ORGAN_CONTRAST * (organ | lookalike) + LESION_CONTRAST * (lesion | spot)
    image += GRAIN * smooth_noise(rng, shape, 0.8) * organ
    image += NOISE * smooth_noise(rng, shape, 0.5)
    segmentation = np.where(lesion, LABELS["lesion"], organ * LABELS["organ"])
    return Case(image.clip(0.01).astype(np.float32), segmentation.astype(np.uint8))


def make_blob(
    rng: np.random.Generator, shape: Sequence[int], centre: NDArray[np.float64], size: float
) -> Mask:
    """Mask of an ellipsoid with a wavy surface.

    Args:
        rng: Source of its axes and its surface.
        shape: Voxels along each axis.
        centre: In voxels.
        size: Mean radius as a share of the image's shortest axis.
    """
    radii = size * min(shape) * rng.uniform(0.8, 1.2, len(shape))
    grid = np.moveaxis(np.indices(shape), 0, -1)
    distance = (((grid - centre) / radii) ** 2).sum(-1)
    surface: Mask = distance + 0.15 * smooth_noise(rng, shape, min(shape) / 12) < 1
    return surface


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> Image:
    """Gaussian noise of mean 0 and standard deviation 1, smoothed with `sigma` voxels."""
    noise: NDArray[np.float64] = gaussian_filter(rng.normal(size=shape), sigma)
    standardised: Image = ((noise - noise.mean()) / noise.std()).astype(np.float32)
    return standardised


def _point_inside(rng: np.random.Generator, mask: Mask) -> NDArray[np.float64]:
    """A random voxel of the mask's inner half: the half that lies closest to its centre."""
    voxels = np.argwhere(mask)
    distance = np.linalg.norm(voxels - voxels.mean(0), axis=1)
    inner = voxels[distance <= np.median(distance)].astype(np.float64)
    point: NDArray[np.float64] = inner[rng.integers(len(inner))]
    return point


def write_dataset(
    folder: Path, shape: Sequence[int], file_ending: str, num_known: int, num_test: int
) -> None:
    """Write phantoms as a data set in nnU-Net's raw format.

    Args:
        folder: `nnUNet_raw/DatasetXXX_NAME`.
        shape: Voxels of each phantom.
        file_ending: `".png"` (2D) or `".nii.gz"`.
        num_known: Cases for training and validation.
        num_test: Cases in `imagesTs` and `labelsTs`.
    """
    rng = np.random.default_rng(0)
    for part, num_cases in (("Tr", num_known), ("Ts", num_test)):
        images, labels = folder / f"images{part}", folder / f"labels{part}"
        images.mkdir(parents=True)
        labels.mkdir()
        for number in range(num_cases):
            name = f"{'case' if part == 'Tr' else 'test'}_{number:03d}"
            case = make_case(rng, shape)
            write_image(images / f"{name}_0000{file_ending}", case.image)
            write_image(labels / f"{name}{file_ending}", case.segmentation)
    content = {
        "channel_names": {"0": "phantom"},
        "labels": LABELS,
        "numTraining": num_known,
        "file_ending": file_ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=1))


def write_image(path: Path, image: Image | NDArray[np.uint8]) -> None:
    """Write an image or a segmentation: PNG, intensity 1 as 100, or NIfTI with voxels of 1 mm."""
    if path.suffix == ".png":
        grey = image if image.dtype == np.uint8 else (image * 100).clip(1, 255).astype(np.uint8)
        io.imsave(path, grey, check_contrast=False)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(path))


def read_image(path: Path) -> NDArray[np.float32]:
    """Read what `write_image` wrote."""
    if path.suffix == ".png":
        return np.asarray(io.imread(path), dtype=np.float32)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(np.float32)
