"""What a check of the doctor saw, and whether a training can start with it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw.

    Attributes:
        level: `OK`, `NOTE` (a training can start) or `PROBLEM` (it cannot).
        what: What was seen; may have several lines.
        mend: Command that mends it, or what to do; empty where nothing is to be done.
    """

    level: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        """Level and what in columns, what mends it below, indented."""
        lines = [*self.what.splitlines(), *(f"  {line}" for line in self.mend.splitlines())]
        return f"{self.level:9}" + f"\n{'':9}".join(lines)


class Problem(Exception):  # noqa: N818  # no error of the program: it ends the checks
    """A problem behind which nothing can be checked; arguments are `what` and `mend`."""


def explain(error: BaseException) -> str:
    """Kind and text of an error, and below the place that raised it."""
    if isinstance(error, SyntaxError):  # its traceback ends at the import
        place = f"{error.filename}, line {error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}, line {frame.lineno}"
    return f"{type(error).__name__}: {error}\n{place}"
