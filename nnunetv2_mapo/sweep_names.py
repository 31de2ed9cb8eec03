"""Names of the trainings of a sweep: the settings that they vary, readable and never ambiguous."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_LONGEST = 12  # characters of a value; a longer one is numbered
_WORD = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")


def name_value(field: str, value: Any, number: int) -> str:
    """Name of a setting and its value, such as `tau005` for 0.05.

    Two values of a setting never share a name: digits that start with 0 are decimals, so 0.5 is
    `05` and 5 is `5`; 2.5 is `2p5`.

    Args:
        field: Name of the setting.
        value: Its value.
        number: Place of the value in its list, from 1; names what has no short name, such as rates.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        digits = _name_number(value)
        return f"{field}{digits}" if len(digits) <= _LONGEST else f"{field}_{number}"
    word = str(value)
    return f"{field}_{word if _WORD.fullmatch(word) and len(word) <= _LONGEST else number}"


def _name_number(value: float) -> str:
    text = format(Decimal(repr(value)), "f")
    whole, _, decimals = text.replace("-", "m").partition(".")
    decimals = decimals.rstrip("0")
    if not decimals:
        return whole
    return f"{whole}{decimals}" if whole in ("0", "m0") else f"{whole}p{decimals}"


def describe_values(values: Mapping[str, Any]) -> str:
    """Settings in words, such as `tau = 0.05, beta = 0.3`."""
    return ", ".join(f"{field} = {describe_value(value)}" for field, value in values.items())


def describe_value(value: Any) -> str:
    """A value for a table; of long lists, such as rates, the first two and the last."""
    if not isinstance(value, tuple):
        return str(value)
    shown = [*map(str, value[:2]), "…", str(value[-1])] if len(value) > 4 else map(str, value)
    return f"({', '.join(shown)})"
