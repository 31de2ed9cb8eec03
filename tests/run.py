"""Run lint, types, contracts of imports and every test without GPU with this interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = (
    [sys.executable, "-m", "ruff", "check", "."],
    [sys.executable, "-m", "ruff", "format", "--check", "."],
    [sys.executable, "-m", "mypy"],
    [str(Path(sysconfig.get_path("scripts"), "lint-imports")), "--no-cache"],  # it has no -m
)

# By file, because the tests of a file share trainings; a worker needs about 1 GB.
PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")


def main() -> int:
    """Return the first exit code that is not 0."""
    os.chdir(ROOT)
    for check in CHECKS:
        print("$", *check, flush=True)
        code = subprocess.run(check, check=False).returncode
        if code:
            return code
    # From this process, so that the installed package is tested and not the folder we are in.
    return pytest.main([*PARALLEL, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
