"""Run lint, types and every test that needs no GPU with the interpreter that runs this script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])

# By file, because the tests of a file share trainings; a worker needs about 1 GB.
PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")


def main() -> int:
    """Return the first exit code that is not 0."""
    os.chdir(ROOT)
    for check in CHECKS:
        print("$", *check, flush=True)
        code = subprocess.run([sys.executable, "-m", *check], check=False).returncode
        if code:
            return code
    # From this process, so that the installed package is tested and not the folder we are in.
    return pytest.main([*PARALLEL, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
