"""`python tests/benchmarks/study …`, with the package of this checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]
    from benchmarks.study.command import main

    sys.exit(main())
