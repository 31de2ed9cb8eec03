"""Dropout rates of a round's candidates: up to the largest one that the network stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from nnunetv2_mapo.method.mining import LoadCase, Log, Miner, mine_within_memory
from nnunetv2_mapo.method.volumes import Channel, Volume

LARGEST_RATE = 0.5
NUM_HALVINGS = 6  # the rate is found to within 0.5 / 2^6 = 0.008
NUM_CASES = 8  # that are looked at


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
    """A miner with dropout at other rates."""
    return replace(miner, sampler=replace(miner.sampler, values=tuple(rates)))


def find_rates(
    miner: Miner, load_case: LoadCase, identifiers: Sequence[str], number: int, log: Log
) -> tuple[float, ...]:
    """Rates of a round, found on a handful of its cases: increasing from 0.

    They are the same at each call with the same weights on the same device, because the same is
    dropped at each rate; the miner's own where the median Dice is 0, which says nothing about any.

    Of the miner's rates only the number counts. Of all training cases `NUM_CASES` are used, evenly
    spaced by name; `number` is the round's.
    """
    ordered = sorted(identifiers)
    step = max(1, len(ordered) / NUM_CASES)
    used = [ordered[int(place * step)] for place in range(min(NUM_CASES, len(ordered)))]

    def median_dice(rate: float) -> float:
        at_rate, dice = with_rates(miner, (rate,)), []
        for identifier in used:
            image, segmentation = load_case(identifier)
            work = partial(_dice_of_samples, image=image, truth=Channel(segmentation, 0))
            seed = f"{miner.config.seed}/{number}/rates/{identifier}"
            dice += mine_within_memory(at_rate, work, seed, log)[1]
        return float(np.median(dice)) if dice else 1.0

    plain = median_dice(0.0)
    if plain == 0:
        log(f"candidates at the dropout rates of training: the median Dice of {used} is 0")
        return miner.sampler.values
    fall, num_rates = miner.config.rates_dice_fall, len(miner.sampler.values)
    largest = bisect_rate(lambda rate: 1 - median_dice(rate) / plain, fall)
    log(
        f"candidates at {num_rates} dropout rates up to {largest:.3g}, the largest one that costs "
        f"at most {fall:.0%} of the median Dice {plain:.4f} of {len(used)} cases"
    )
    return spread_rates(largest, num_rates)


def _dice_of_samples(miner: Miner, image: Volume, truth: Volume) -> list[float]:
    """Dice of the only candidate of each sample with foreground; arguments as of `Miner.mine`."""
    samples = miner.finder.find_samples(miner.find_candidates(image), truth)
    return [sample.dice[0] for sample in samples if sample.has_foreground]
