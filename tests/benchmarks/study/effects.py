"""Difference of an arm to its control, paired over seeds and cases. Pure functions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]

_REPLICATES = 2000
_LEVEL = 0.95


class Effect(NamedTuple):
    """Difference arm - control.

    Attributes:
        mean: Of all seeds and cases.
        low: Lower end of its 95 % interval.
        high: Upper end.
        by_seed: Difference of each seed.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]


class Signs(NamedTuple):
    """Over data sets and over trainings: where an arm is better than its control.

    Attributes:
        ahead: Data sets with an interval on the better side of 0.
        open: Data sets with 0 in the interval.
        behind: Data sets with an interval on the worse side.
        datasets_better: Data sets with a better mean, whatever the interval.
        datasets_worse: Data sets with a worse one.
        seeds_better: Pairs of a data set and a seed with a better mean.
        seeds_worse: Those with a worse one.
    """

    ahead: int
    open: int
    behind: int
    datasets_better: int
    datasets_worse: int
    seeds_better: int
    seeds_worse: int


def mean_of_numbers(values: Values, axis: tuple[int, ...] | int | None = None) -> Values:
    """Mean without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def compare(arm: Values, control: Values, *, replicates: int = _REPLICATES) -> Effect:
    """Difference of two arms with its interval by a hierarchical bootstrap.

    The split is fixed, so cases are crossed with seeds: a replicate draws seeds and cases with
    replacement, each once for both arms. With one seed only the cases are drawn. NaN (class neither
    predicted nor there) is left out of the mean of its arm.

    Args:
        arm: Metric of each seed and case, shape `(seeds, cases)`.
        control: The same seeds and cases.
        replicates: Of the bootstrap.
    """
    generator = np.random.default_rng(0)
    num_seeds, num_cases = arm.shape
    seeds = draw_counts(generator, num_seeds, replicates)
    cases = draw_counts(generator, num_cases, replicates)
    differences = _weighted_means(arm, seeds, cases) - _weighted_means(control, seeds, cases)
    low, high = np.nanquantile(differences, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    by_seed = mean_of_numbers(arm, axis=1) - mean_of_numbers(control, axis=1)
    mean = float(mean_of_numbers(arm) - mean_of_numbers(control))
    return Effect(mean, float(low), float(high), tuple(by_seed.tolist()))


def draw_counts(generator: np.random.Generator, number: int, replicates: int) -> Values:
    """How often each of some things is drawn in each replicate, shape `(replicates, number)`."""
    shares = np.full(number, 1 / number)
    return generator.multinomial(number, shares, size=replicates).astype(float)


def _weighted_means(values: Values, seeds: Values, cases: Values) -> Values:
    """Mean of each replicate without NaN, shape `(replicates,)`."""
    known = np.isfinite(values)
    sums = ((seeds @ np.where(known, values, 0)) * cases).sum(1)
    counts = ((seeds @ known) * cases).sum(1)
    return sums / np.where(counts > 0, counts, np.nan)


def count_signs(effects: Sequence[Effect], *, higher_is_better: bool) -> Signs:
    """Count the effects on an arm, one of each data set, by their direction."""
    sign = 1 if higher_is_better else -1
    ends = [sorted((sign * effect.low, sign * effect.high)) for effect in effects]
    means = [sign * effect.mean for effect in effects]
    seeds = [sign * value for effect in effects for value in effect.by_seed]
    ahead, behind = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
    return Signs(
        ahead,
        len(effects) - ahead - behind,
        behind,
        sum(value > 0 for value in means),
        sum(value < 0 for value in means),
        sum(value > 0 for value in seeds),
        sum(value < 0 for value in seeds),
    )
