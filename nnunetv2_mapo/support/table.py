"""Tables and lists of plain text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain

WIDTH = 100  # characters of a line in a terminal
_LEAST = 20  # characters of a first column that is broken


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


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None
) -> str:
    """Columns side by side, the first aligned left, the others right.

    Args:
        header: Of each column.
        rows: Their cells.
        width: Characters of a line, where the first column is broken if it must be; None: any.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if width is not None:
        left = width - sum(widths[1:]) - 2 * len(widths[1:])
        broken = [_break(row[0], max(left, _LEAST)) for row in rows]
        widths[0] = max(len(line) for line in (header[0], *chain.from_iterable(broken)))
        rows = [
            [line, *(row[1:] if place == len(lines) - 1 else [""] * len(row[1:]))]
            for row, lines in zip(rows, broken, strict=True)
            for place, line in enumerate(lines)
        ]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)


def stack_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns do not fit into a line as several ones, each with the first column."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    groups: list[list[int]] = [[]]
    for place, width in enumerate(widths[1:], 1):
        used = widths[0] + sum(2 + widths[each] for each in groups[-1])
        if groups[-1] and used + 2 + width > WIDTH:
            groups.append([])
        groups[-1].append(place)
    tables = (
        [[row[place] for place in (0, *group)] for row in (header, *rows)] for group in groups
    )
    return "\n\n".join(format_table(first, others) for first, *others in tables)


def _break(text: str, width: int) -> list[str]:
    """Lines of a cell: broken at spaces, and where that is not enough behind underscores."""
    spaced = text.replace("_", "_\0") if max(map(len, text.split())) > width else text
    lines = textwrap.wrap(spaced.replace("\0", " "), width)
    return [line.replace("_ ", "_") for line in lines]


def wrap(text: str, width: int = WIDTH) -> str:
    """Lines of at most so many characters; a longer word, such as a path, stays whole."""
    return "\n".join(_wrap(text, width))


def wrap_commands(text: str) -> str:
    """Indented commands, one on each line of the text; a long one goes on behind a backslash."""
    whole = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace(" ", "\0"), text)
    commands = [_wrap(f"  {line}", WIDTH - 2, "    ") for line in whole.splitlines()]
    return "\n".join(" \\\n".join(lines) for lines in commands).replace("\0", " ")


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def format_duration(seconds: float) -> str:
    """Duration in the unit that suits it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
