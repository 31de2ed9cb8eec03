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

    @property
    def disputed(self) -> list[int]:
        """Voxels of each slice in which candidates differ, or of the region."""
        differs = self.region
        if differs is None:
            differs = (self.candidates != self.candidates[0]).any(0)
        return [int(number) for number in differs.sum((1, 2))]

    @property
    def box(self) -> list[int]:
        """First and last row and column of what is disputed, in voxels."""
        differs = self.region
        if differs is None:
            differs = (self.candidates != self.candidates[0]).any(0)
        ends: list[int] = []
        for axis in (1, 2):
            others = tuple(other for other in range(3) if other != axis)
            places = np.flatnonzero(differs.any(others))
            ends += [int(places[0]), int(places[-1])]
        return ends

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
    values = np.flatnonzero(np.bincount(kept.candidates.ravel()))
    if len(values) > 256:
        message = f"The candidates have {len(values)} labels; 256 can be shown."
        raise ChoicesError(message)
    mask = None
    if region is not None:
        first, second, number = region
        mask = disputed_regions(kept.candidates[first], kept.candidates[second])[number]
    places = np.zeros(values[-1] + 1, np.uint8)
    places[values] = range(len(values))
    display = kept.properties[ENTRY].get("display") or [None] * len(kept.image)
    image = np.stack([to_bytes(*each) for each in zip(kept.image, display, strict=True)])
    return View(image, places[kept.candidates], values.tolist(), mask)


def to_bytes(
    channel: NDArray[np.float32], ends: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Intensities, `(*spatial)`, from 0 to 255 at these ends, or at their darkest and brightest."""
    step = max(1, channel.size // _MOST_SAMPLES)
    low, high = ends or np.percentile(channel.ravel()[::step], (_DARKEST, _BRIGHTEST))
    scaled = (channel - low) * (255 / max(float(high - low), 1e-6))
    result: NDArray[np.uint8] = scaled.clip(0, 255).astype(np.uint8)
    return result
