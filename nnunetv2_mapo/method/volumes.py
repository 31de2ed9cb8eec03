"""Arrays of a case that are read and kept in parts: a large one is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import blosc2
import numpy as np
from numpy.typing import DTypeLike

_PLANES = 8  # that are compressed together


class Volume(Protocol):
    """What is read by slices and integers, one for each axis: an array, a tensor, a file."""

    @property
    def shape(self) -> Sequence[int]:
        """Of the whole."""

    def __getitem__(self, index: Any) -> Any:
        """Part of it, which `numpy.asarray` takes."""


@dataclass(frozen=True)
class Channel:
    """One channel `(*spatial)` of a volume `(channels, *spatial)`."""

    volume: Volume
    number: int

    @property
    def shape(self) -> Sequence[int]:
        """Of the channel."""
        return self.volume.shape[1:]

    def __getitem__(self, index: Any) -> Any:
        """Part of it, by one index or a tuple of them."""
        return self.volume[(self.number, *(index if isinstance(index, tuple) else (index,)))]


def make_compressed(shape: Sequence[int], dtype: DTypeLike) -> Any:
    """Zeros `(channels, *spatial)` that are kept compressed in memory, to be written in parts.

    A label map of any content takes about as many bits a voxel as its labels need, of 20 labels 5;
    a usual one a small part of that.
    """
    planes = min(_PLANES, shape[1])
    return blosc2.zeros(
        tuple(shape), np.dtype(dtype), chunks=(1, planes, *shape[2:]),
        cparams={
            "codec": blosc2.Codec.LZ4, "clevel": 1, "nthreads": 1,
            "filters": [blosc2.Filter.BITSHUFFLE],
        },
        dparams={"nthreads": 1},
    )  # fmt: skip
