"""Pictures of segmentations: where candidates differ, laid over the image, one slice of a case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from nnunetv2_mapo.tools.uncertainty.uncertainty import vote_variance

# Colours of the classes that colour-blind people tell apart (Okabe and Ito); then again.
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")
LONGEST_SIDE = 288  # pixels of a picture
_OPACITY = 0.35  # of the inside of a segmentation; its border is opaque
_RGB = NDArray[np.uint8]


def candidate_variance(candidates: NDArray[np.integer]) -> NDArray[np.floating]:
    """Vote variance of the candidates in each voxel.

    Args:
        candidates: Label maps, shape `(K, *spatial)`.

    Returns:
        Shape `(*spatial)`, in [0, 0.5).
    """
    shares = [(candidates == value).mean(0) for value in np.unique(candidates)]
    return vote_variance(np.stack(shares))


def find_slice(weights: NDArray[Any]) -> int:
    """Slice along the first axis with the largest sum; the middle one if all sums are equal."""
    sums = np.asarray(weights, dtype=float).sum((1, 2))
    return int(sums.argmax()) if sums.max() > sums.min() else len(sums) // 2


def resize(plane: NDArray[Any], spacing: Sequence[float]) -> NDArray[Any]:
    """Enlarge or shrink a slice to `LONGEST_SIDE` in its true proportions, without interpolation.

    Args:
        plane: Shape `(y, x, …)`.
        spacing: Of a voxel in y and x, in mm.
    """
    extent = np.array(plane.shape[:2]) * np.array(spacing)
    size = np.maximum(1, np.round(LONGEST_SIDE * extent / extent.max()).astype(int))
    rows, columns = (np.arange(n) * old // n for n, old in zip(size, plane.shape, strict=False))
    enlarged: NDArray[Any] = plane[rows][:, columns]
    return enlarged


def paint_image(channels: NDArray[np.floating], spacing: Sequence[float]) -> _RGB:
    """Slice of an image as grey values, or as colours.

    Args:
        channels: Shape `(1, y, x)`, or `(3, y, x)` for red, green and blue.
        spacing: Of a voxel in y and x, in mm.

    Returns:
        Shape `(height, width, 3)`; each channel from its 0.5 to its 99.5 percentile.
    """
    low, high = np.percentile(channels, (0.5, 99.5), axis=(1, 2), keepdims=True)
    scaled = np.clip((channels - low) / np.maximum(high - low, 1e-8), 0, 1)
    pixels = np.broadcast_to(np.moveaxis(scaled, 0, -1) * 255, (*channels.shape[1:], 3))
    return resize(pixels.round().astype(np.uint8), spacing)


def paint_classes(image: _RGB, classes: NDArray[Any], spacing: Sequence[float]) -> _RGB:
    """Lay a segmentation over a painted image.

    Args:
        image: Of `paint_image`.
        classes: 0 is background, shape `(y, x)`.
        spacing: Of a voxel in y and x, in mm.
    """
    painted, classes = image.astype(float), resize(classes, spacing)
    for value in np.unique(classes[classes > 0]):
        colour = hex_to_rgb(COLOURS[(value - 1) % len(COLOURS)])
        inside = classes == value
        border = inside & ~binary_erosion(inside, iterations=2, border_value=1)
        painted[inside] = (1 - _OPACITY) * painted[inside] + _OPACITY * colour
        painted[border] = colour
    return painted.round().astype(np.uint8)


def paint_heat(values: NDArray[np.floating], largest: float, spacing: Sequence[float]) -> _RGB:
    """Slice of values from 0 (black) to `largest` (bright).

    Args:
        values: Shape `(y, x)`.
        largest: Value of the brightest colour, > 0.
        spacing: Of a voxel in y and x, in mm.
    """
    from matplotlib import colormaps

    heat = colormaps["inferno"](np.clip(resize(values, spacing) / largest, 0, 1))
    return (heat[..., :3] * 255).round().astype(np.uint8)


def hex_to_rgb(colour: str) -> NDArray[np.float64]:
    """`"#rrggbb"` as three values in 0 … 255."""
    return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)], dtype=float)
