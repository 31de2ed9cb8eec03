"""What the page draws: slices of an image and of its candidates as bytes."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunetv2_mapo.method.choices import ChoicesError, disputed_regions
from nnunetv2_mapo.tools.choose.folder import ENTRY, KeptImage

_DARKEST, _BRIGHTEST = 0.1, 99.9  # percentiles of a channel that are 0 and 255
_MOST_SAMPLES = 1_000_000  # voxels of which the percentiles are taken


class View(NamedTuple):
    """An image with its candidates in the page's form."""

    image: NDArray[np.uint8]  # `(channels, *spatial)`
    candidates: NDArray[np.uint8]  # places in `values`, `(K, *spatial)`, in the record's order
    values: list[int]  # nnU-Net's labels that there are
    region: NDArray[np.bool_] | None  # that is asked about, `(*spatial)`; None: the image
    disputed: list[int]  # voxels of each slice in which candidates differ, or of the region
    box: list[int]  # first and last row, first and last column of these voxels

    def slice(self, place: int, shown: Sequence[int]) -> bytes:
        """A slice: its channels, the shown candidates, the region; each `(rows, columns)` bytes."""
        planes = [*self.image[:, place], *self.candidates[list(shown), place]]
        if self.region is not None:
            planes.append(self.region[place].astype(np.uint8))
        return gzip.compress(b"".join(plane.tobytes() for plane in planes), 1)


def make_view(kept: KeptImage, region: tuple[int, int, int] | None) -> View:
    """View of an image, or of a disputed region of two of its candidates.

    Args:
        kept: The image.
        region: The two candidates and the region's number.

    Raises:
        ChoicesError: The image has too many labels.
    """
    is_there = np.zeros(int(kept.candidates.max()) + 1, bool)
    for plane in kept.candidates.reshape(-1, *kept.candidates.shape[2:]):  # little memory
        is_there[plane] = True
    values = np.flatnonzero(is_there)
    if len(values) > 256:
        message = f"The candidates have {len(values)} labels; 256 can be shown."
        raise ChoicesError(message)
    mask = None
    if region is not None:
        first, second, number = region
        mask = disputed_regions(kept.candidates[first], kept.candidates[second])[number]
    places = np.cumsum(is_there, dtype=np.int64).astype(np.uint8) - np.uint8(1)
    display = kept.properties[ENTRY].get("display") or [None] * len(kept.image)
    image = np.stack([to_bytes(*each) for each in zip(kept.image, display, strict=True)])
    candidates = np.stack([places[candidate] for candidate in kept.candidates])
    differs = (candidates != candidates[0]).any(0) if mask is None else mask
    disputed = [int(number) for number in differs.sum((1, 2))]
    return View(image, candidates, values.tolist(), mask, disputed, find_box(differs))


def find_box(mask: NDArray[np.bool_]) -> list[int]:
    """First and last row, first and last column of a mask, `(*spatial)`, that is not empty."""
    places = [np.flatnonzero(mask.any(axes)) for axes in ((0, 2), (0, 1))]
    return [int(end) for along in places for end in (along[0], along[-1])]


def to_bytes(
    channel: NDArray[np.float32], ends: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Intensities, `(*spatial)`, from 0 to 255 at these ends, or at their darkest and brightest."""
    step = max(1, channel.size // _MOST_SAMPLES)
    low, high = ends or np.percentile(channel.ravel()[::step], (_DARKEST, _BRIGHTEST))
    if low == high:  # but for a few voxels all are the same
        low, high = channel.min(), channel.max()
    scaled = channel - np.float32(low)
    scaled *= 255 / max(float(high - low), 1e-6)
    result: NDArray[np.uint8] = scaled.clip(0, 255, out=scaled).astype(np.uint8)
    return result
