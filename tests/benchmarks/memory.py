"""Peak memory of a whole training with warm-up, mining and preferences against a stock one.

Each training runs in a process of its own, two epochs of a few steps, the second one the preference
stage; its peak resident memory is what the operating system reports (`ru_maxrss`).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator

# torch and nnU-Net are imported in the children only: a child's peak starts with its parent's size
NUM_DIMENSIONS = {"2D": 2, "3D": 3}
BAR = 1.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--child", nargs=2, metavar=("TRAINER", "DIMENSIONS"))
    arguments = parser.parse_args()
    if arguments.child:
        _train(*arguments.child)
    else:
        _print_table(arguments.repeats)


def _print_table(repeats: int) -> None:
    from statistics import median

    print("| comparison | ratio: median (min-max) | bar | met |\n|---|---|---|---|", flush=True)
