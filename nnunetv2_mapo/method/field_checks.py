"""What is wrong with the value of a setting, in one line; nothing where it is valid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeGuard


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_number(
    name: str, value: object, valid: str, is_valid: Callable[[float], bool]
) -> list[str]:
    """Problem of a number, which is to be `valid`."""
    if _is_number(value) and is_valid(value):
        return []
    return [f"{name}={value!r} is not valid: a number {valid} is needed."]


def check_count(name: str, value: object, least: int) -> list[str]:
    """Problem of an integer."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return []
    return [f"{name}={value!r} is not valid: an integer >= {least} is needed."]


def check_bool(name: str, value: object) -> list[str]:
    """Problem of a truth value."""
    return [] if isinstance(value, bool) else [f"{name}={value!r} is not valid: True or False."]


def check_choice(name: str, value: object, choices: Sequence[str]) -> list[str]:
    """Problem of one of several names."""
    if value in choices:
        return []
    return [f"{name}={value!r} is not valid: choose one of {list(choices)}."]


def check_patterns(name: str, patterns: object) -> list[str]:
    """Problem of names of modules."""
    if isinstance(patterns, (tuple, list)) and all(isinstance(p, str) and p for p in patterns):
        return []
    valid = "a tuple of module names, which may hold wildcards, such as ('decoder.*',), is needed"
    return [f"{name}={patterns!r} is not valid: {valid}."]


def check_rates(name: str, rates: object) -> list[str]:
    """Problem of candidate dropout rates."""
    if _is_increasing(rates, lambda rate: 0 <= rate < 1) and rates[0] == 0:
        return []
    valid = "increasing rates from 0 to below 1 are needed, such as (0.0, 0.1, 0.2)"
    return [f"{name}={rates!r} is not valid: {valid}."]


def check_sigmas(name: str, sigmas: object) -> list[str]:
    """Problem of the strengths of the candidates' input noise."""
    if _is_increasing(sigmas, lambda sigma: sigma >= 0) and sigmas[0] == 0:
        return []
    valid = "increasing standard deviations from 0 are needed, such as (0.0, 0.05, 0.1)"
    return [f"{name}={sigmas!r} is not valid: {valid}."]


def check_thresholds(name: str, thresholds: object) -> list[str]:
    """Problem of the candidates' thresholds."""
    if (
        _are_numbers(thresholds, lambda threshold: 0 < threshold < 1)
        and thresholds[0] == 0.5
        and len(set(thresholds)) == len(thresholds)
    ):
        return []
    valid = (
        "0.5 (the plain prediction) is needed first, then different thresholds between 0 and 1, "
        "such as (0.5, 0.4, 0.6)"
    )
    return [f"{name}={thresholds!r} is not valid: {valid}."]


def _are_numbers(values: object, is_valid: Callable[[float], bool]) -> TypeGuard[Sequence[float]]:
    """Whether they are the values of two or more candidates."""
    return (
        isinstance(values, (tuple, list))
        and len(values) >= 2
        and all(_is_number(value) and is_valid(value) for value in values)
    )


def _is_increasing(values: object, is_valid: Callable[[float], bool]) -> TypeGuard[Sequence[float]]:
    return _are_numbers(values, is_valid) and all(low < high for low, high in pairwise(values))
