"""Tables and lists of plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def list_some(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    shown = ", ".join(names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


def join_names(names: Sequence[str], all_names: Iterable[str]) -> list[str]:
    """Patterns that fit some of all sites and no other: one where names differ in numbers only."""
    joined: dict[str, list[str]] = {}
    for name in names:
        joined.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    others = set(all_names) - set(names)
    patterns = []
    for pattern, its_names in joined.items():
        is_exact = not any(fnmatchcase(other, pattern) for other in others)
        patterns += [pattern] if is_exact and len(its_names) > 1 else its_names
    return patterns


def name_blocks(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """The largest blocks of at least two of the dotted names and none of the others."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        outer = (".".join(parts[:end]) for end in range(1, len(parts)))
        own = (block for block in outer if not any(o.startswith(f"{block}.") for o in others))
        blocks.setdefault(next(own, name), []).append(name)
    return [block if len(inside) > 1 else inside[0] for block, inside in blocks.items()]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)
