"""Images that are known already, by their content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PROBE = 16  # voxels along each axis in the middle of an image that are compared first
_TOLERANCE = 1e-3  # of preprocessed intensities: resampling differs in the last bits of machines

Load = Callable[[], NDArray[Any]]


class KnownCases:
    """Preprocessed images of which one may be the same as another.

    They are read when the first image of their shape is looked for, and then only their middle.
    """

    def __init__(self, cases: Iterable[tuple[str, tuple[int, ...], Load]] = ()) -> None:
        self._by_shape: dict[tuple[int, ...], list[tuple[str, Load]]] = defaultdict(list)
        self._probes: dict[tuple[int, ...], list[NDArray[np.float32]]] = defaultdict(list)
        for name, shape, load in cases:
            self.add(name, shape, load)

    @classmethod
    def of(cls, dataset: Any) -> KnownCases:
        """Those of a dataset of nnU-Net's; only their shapes are read."""

        def load(name: str) -> Any:
            return dataset.load_case(name)[0]

        names = map(str, dataset.identifiers)
        return cls((name, load(name).shape, partial(load, name)) for name in names)

    def add(self, name: str, shape: tuple[int, ...], load: Load) -> None:
        """Make one more image `(channels, *spatial)` known."""
        self._by_shape[shape].append((name, load))

    def find(self, image: Any) -> str | None:
        """Name of a known image that is the same as this one, `(channels, *spatial)`.

        It is an array, or one of blosc2's, which is read no further than is needed.
        """
        shape = image.shape
        known, probes = self._by_shape[shape], self._probes[shape]
        probes += [probe(load()) for _, load in known[len(probes) :]]
        if not known:
            return None
        is_near = np.abs(np.stack(probes) - probe(image)).max(1) < _TOLERANCE
        for place in np.flatnonzero(is_near):
            name, load = known[place]
            if np.abs(np.asarray(load()[:]) - image[:]).max() < _TOLERANCE:
                return name
        return None


def probe(image: Any) -> NDArray[np.float32]:
    """Voxels in the middle of an image `(channels, *spatial)`, flat."""
    middle = tuple(
        slice(max(0, (size - _PROBE) // 2), (size + _PROBE) // 2) for size in image.shape[1:]
    )
    return np.asarray(image[(slice(None), *middle)], np.float32).ravel()
