"""Miners of tiny networks, and cases for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Miner

CPU = torch.device("cpu")
CLASSES = Labels(3)
REGIONS = Labels(2, regions=((1, 2), (2,)))
RATES = (0.0, 0.2, 0.5, 0.8)


def with_settings(miner: Miner, **given) -> Miner:
    finder = replace(miner.finder, config=replace(miner.config, **given))
    return replace(miner, finder=finder)


def segment(miner: Miner, image: Tensor) -> Tensor:
    return torch.from_numpy(miner.find_candidates(image)[:])


def units_of(unit: str) -> dict[str, str]:
    return {"selection_unit_2d": unit, "selection_unit_3d": unit}


def some_case(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(1, *shape, generator=rng)
    return image, torch.randint(0, 3, shape, generator=rng).short()


def fail_above(miner: Miner, most_samples: int, error: Exception) -> list[int]:
    """Fail with more samples than so many; returns the numbers of samples that were tried."""
    seen = []

    def forward(_, inputs):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > most_samples:
            raise error

    miner.network.register_forward_pre_hook(forward)
    return seen
