"""What a setting may be: tests of values, and the same in words for the message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

# What candidates and parts can be ranked by, besides a user's own function.
METRICS = ("dice", "nsd", "hd95", "asd", "lesion_f1", "lesion_dice", "cldice", "false_volume")
# What is made of images that nobody has segmented, besides nothing.
UNLABELLED = ("preferences", "chosen", "pseudo-label")


class Valid(NamedTuple):
    """What a setting may be: a test, the same in words for the message, and a list of choices."""

    holds: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: object) -> list[str]:
        """What is wrong with a value, in one line; nothing if it is valid."""
        return [] if self.holds(value) else [f"{name}={value!r} is not valid: {self.words}."]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(range_: str, holds: Callable[[float], bool]) -> Valid:
    """A number in a range, which is given in words and as a test."""
    words = f"a number {range_} is needed"
    return Valid(lambda value: _is_number(value) and holds(value), words)


def integer(least: int) -> Valid:
    """An integer that is not below another one."""
    words = f"an integer >= {least} is needed"
    return Valid(lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least, words)


def choice(*names: str) -> Valid:
    """One of some names."""
    return Valid(lambda value: value in names, f"choose one of {list(names)}", names)


def _values(
    words: str, holds: Callable[[float], bool], *, first: float = 0, increasing: bool = True
) -> Valid:
    """Values of two or more candidates: different numbers, that of the plain prediction first."""

    def are_valid(values: Any) -> bool:
        return (
            isinstance(values, (tuple, list))
            and len(values) >= 2
            and all(_is_number(value) and holds(value) for value in values)
            and values[0] == first
            and len(set(values)) == len(values)
            and (not increasing or list(values) == sorted(values))
        )

    return Valid(are_valid, words)


BOOL = Valid(lambda value: isinstance(value, bool), "True or False")
ABOVE_0 = number("> 0", lambda value: value > 0)
BETWEEN_0_AND_1 = number("in (0, 1)", lambda value: 0 < value < 1)
BELOW_1 = number("in [0, 1)", lambda value: 0 <= value < 1)
UP_TO_1 = number("in (0, 1]", lambda value: 0 < value <= 1)
UNIT = choice("case", "slice", "window")
RATES = _values(
    "increasing rates from 0 to below 1 are needed, such as (0.0, 0.1, 0.2)",
    lambda rate: 0 <= rate < 1,
)
SIGMAS = _values(
    "increasing standard deviations from 0 are needed, such as (0.0, 0.05, 0.1)",
    lambda sigma: sigma >= 0,
)
CUTS = _values(
    "0.5 (the plain prediction) is needed first, then different thresholds between 0 and 1, such "
    "as (0.5, 0.4, 0.6)",
    lambda threshold: 0 < threshold < 1,
    first=0.5,
    increasing=False,
)
MODULES = Valid(
    lambda names: isinstance(names, (tuple, list)) and all(isinstance(n, str) and n for n in names),
    "a tuple of module names, which may hold wildcards, such as ('decoder.*',), is needed",
)


def _is_number_of_cases(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value >= 1
    return _is_number(value) and 0 < value < 1


CASES = Valid(
    _is_number_of_cases,
    "a number of cases >= 1 as an integer, such as 500, or a share of them in (0, 1), such as 0.1, "
    "is needed; None for all",
)


def _is_metric(value: object) -> bool:
    return isinstance(value, str) and (
        value in METRICS or re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", value) is not None
    )


def _are_weights(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(_is_metric(name) and _is_number(w) and w > 0 for name, w in value.items())


METRIC = Valid(
    lambda value: _is_metric(value) or _are_weights(value),
    f"choose one of {list(METRICS)}, a function of your own as 'package.module:function', or "
    "weights > 0 of several, such as {'lesion_f1': 0.5, 'dice': 0.5}",
)
