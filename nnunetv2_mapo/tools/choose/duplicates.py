"""Images that the model knows already, by their content: cases of its own data set."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from numpy.typing import NDArray

from nnunetv2_mapo.tools.models import TrainedModel

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

    def add(self, name: str, shape: tuple[int, ...], load: Load) -> None:
        """Make one more image `(channels, *spatial)` known."""
        self._by_shape[shape].append((name, load))

    def find(self, image: NDArray[np.float32]) -> str | None:
        """Name of a known image that is the same as this one, `(channels, *spatial)`."""
        shape = image.shape
        known, probes = self._by_shape[shape], self._probes[shape]
        probes += [probe(load()) for _, load in known[len(probes) :]]
        if not known:
            return None
        is_near = np.abs(np.stack(probes) - probe(image)).max(1) < _TOLERANCE
        for place in np.flatnonzero(is_near):
            name, load = known[place]
            if np.abs(np.asarray(load()[:]) - image).max() < _TOLERANCE:
                return name
        return None


def probe(image: Any) -> NDArray[np.float32]:
    """Voxels in the middle of an image `(channels, *spatial)`, flat."""
    middle = tuple(
        slice(max(0, (size - _PROBE) // 2), (size + _PROBE) // 2) for size in image.shape[1:]
    )
    return np.asarray(image[(slice(None), *middle)], np.float32).ravel()


def read_known_cases(model: TrainedModel) -> KnownCases:
    """All preprocessed cases of a model's data set, training and validation; none if not here.

    They are looked for in `nnUNet_preprocessed`; only their shapes are read.
    """
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112  # nnU-Net's own name
    identifier = model.configuration_manager.data_identifier
    folder = Path(root or "", model.plans_manager.dataset_name, identifier)
    if not root or not folder.is_dir() or not any(folder.iterdir()):
        return KnownCases()
    dataset = infer_dataset_class(str(folder))(str(folder))

    def load(name: str) -> Any:
        return dataset.load_case(name)[0]

    names = map(str, dataset.identifiers)
    return KnownCases((name, load(name).shape, partial(load, name)) for name in names)
