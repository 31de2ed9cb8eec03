"""A finding of the doctor: what was seen, whether it keeps a training from starting, what mends it.

Nothing that this module or the ones that need no PyTorch import may fail in a broken environment.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
_WIDTH = len(PROBLEM) + 2


class Finding(NamedTuple):
    """One thing that a check saw.

    Attributes:
        level: `OK`, `NOTE` (a training can start) or `PROBLEM` (it cannot, or not as it should).
        what: What was seen; may have several lines.
        mend: Command that mends it, or what to do; empty where nothing is to be done.
    """

    level: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        """Level and what in columns, the mending command below, indented."""
        mend = (f"  {line}" for line in self.mend.splitlines())
        first, *others = [*self.what.splitlines(), *mend]
        indent = " " * _WIDTH
        return "\n".join([f"{self.level:{_WIDTH}}{first}", *(indent + line for line in others)])


def has_problem(findings: Iterable[Finding]) -> bool:
    """Whether any finding is a problem."""
    return any(finding.level == PROBLEM for finding in findings)


def guard(step: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Findings of a check, whatever it raises in a broken environment."""
    try:
        return list(check())
    except (Exception, SystemExit) as error:
        return [Finding(PROBLEM, f"{step} could not be checked: {last_line(error)}")]


def say_export(name: str, value: str) -> str:
    """Command that sets an environment variable in this terminal."""
    if os.name == "nt":
        return f"set {name}={value}"
    return f"export {name}={shlex.quote(value)}"


def say_unset(name: str) -> str:
    """Command that removes an environment variable in this terminal."""
    return f"set {name}=" if os.name == "nt" else f"unset {name}"


def say_command(*words: str) -> str:
    """Words as one command line, quoted for the terminal."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def say_pip(*words: str) -> str:
    """Command of the pip that belongs to the running Python."""
    return say_command(sys.executable, "-m", "pip", *words)


def last_line(error: BaseException) -> str:
    """Kind of an error and the last line of its text."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}".removesuffix(": ")
