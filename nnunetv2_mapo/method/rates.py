"""Dropout rates of a round's candidates: up to the largest one that the network stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_mapo.method.mining import Miner, mine_within_memory
from nnunetv2_mapo.method.sampling import DropoutSampler

LARGEST_RATE = 0.5
NUM_HALVINGS = 6  # the rate is found to within 0.5 / 2^6 = 0.008
NUM_CASES = 8  # that are looked at

LoadCase = Callable[[str], tuple[Tensor, NDArray[Any]]]


def bisect_rate(fall_at: Callable[[float], float], most: float) -> float:
    """Largest rate at which something falls by at most so much, in (0, `LARGEST_RATE`].

    The fall at a rate is to be about increasing. If no rate will do, it is the smallest one that
    bisection can tell from 0.
    """
    if fall_at(LARGEST_RATE) <= most:
        return LARGEST_RATE
    low, high = 0.0, LARGEST_RATE
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        if fall_at(middle) <= most:
            low = middle
        else:
            high = middle
    return low or high


def spread_rates(largest: float, number: int) -> tuple[float, ...]:
    """So many rates from 0 to the largest, evenly."""
    return tuple(round(float(rate), 4) for rate in np.linspace(0, largest, number))


def with_rates(miner: Miner, rates: Sequence[float]) -> Miner:
    """The miner with other dropout rates, and as many samples in a forward pass.

    Raises:
        TypeError: It does not mine with dropout.
    """
    if not isinstance(miner.sampler, DropoutSampler):
        message = f"{type(miner.sampler).__name__} has no dropout rates."
        raise TypeError(message)
    num_windows = miner.windows_per_forward * len(miner.sampler.values) // len(rates)
    sampler = replace(miner.sampler, values=tuple(rates))
    return replace(miner, sampler=sampler, windows_per_forward=max(1, num_windows))


def find_rates(
    miner: Miner,
    load_case: LoadCase,
    identifiers: Sequence[str],
    *,
    dice_fall: float,
    seed: str,
    log: Callable[[str], None],
) -> tuple[float, ...]:
    """Rates of a round, found on a handful of its cases: increasing from 0.

    They are the same at each call with the same weights on the same device; the miner's own where
    the median Dice is 0, which says nothing about any rate.

    Args:
        miner: Mines with dropout; of its rates only the number matters.
        load_case: See `rounds.mine_round`.
        identifiers: Every training case; of these `NUM_CASES`, evenly spaced by name, are used.
        dice_fall: Share of the median Dice of the samples with foreground that may be lost.
        seed: Decides what is dropped; the same at each rate, so that they compare.
        log: Takes what a user should know.
    """
    ordered = sorted(identifiers)
    step = max(1, len(ordered) / NUM_CASES)
    used = [ordered[int(place * step)] for place in range(min(NUM_CASES, len(ordered)))]

    def median_dice(rate: float) -> float:
        at_rate, dice = with_rates(miner, (rate,)), []
        for identifier in used:
            image, segmentation = load_case(identifier)
            work = partial(_dice_of_samples, image=image, segmentation=segmentation)
            dice += mine_within_memory(at_rate, work, f"{seed}/rates/{identifier}", log)[1]
        return float(np.median(dice)) if dice else 1.0

    plain = median_dice(0.0)
    if plain == 0:
        log(f"candidates at the dropout rates of training: the median Dice of {used} is 0")
        return miner.sampler.values
    largest = bisect_rate(lambda rate: 1 - median_dice(rate) / plain, dice_fall)
    number = len(miner.sampler.values)
    log(
        f"candidates at {number} dropout rates up to {largest:.3g}, the largest one that costs at "
        f"most {dice_fall:.0%} of the median Dice {plain:.4f} of {len(used)} cases"
    )
    return spread_rates(largest, number)


def _dice_of_samples(miner: Miner, image: Tensor, segmentation: NDArray[Any]) -> list[float]:
    """Dice of the only candidate of each sample with foreground."""
    samples = miner.find_samples(image, torch.from_numpy(segmentation[0]))
    return [sample.dice[0] for sample in samples if sample.target.any()]
