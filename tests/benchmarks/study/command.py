"""The study's command line."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .plan import list_cells
from .results import KEPT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    options = build_parser().parse_args(arguments)
    return options.command(options)


def build_parser() -> argparse.ArgumentParser:
    """Parser of all commands."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks/study", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="train the next missing cells")
    run.set_defaults(command=run_cells)
    run.add_argument("--minutes", type=float, default=60, help="begin no cell that ends later")
    run.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    run.add_argument("--device", default="cpu", help="cpu or cuda")
    run.add_argument("--work", type=Path, help="work folder: prepared data, models, logs")
    run.add_argument("--data", type=Path, help="raw data sets; default: MAPO_TEST_DATA")
    run.add_argument("--steps", type=int, help="an epoch, for a smoke test: nothing is recorded")
    _add_only(run)
    plan = commands.add_parser("plan", help="which cells are done, which are missing")
    plan.set_defaults(command=print_plan)
    _add_only(plan)
    table = commands.add_parser("table", help="results")
    table.set_defaults(command=print_tables)
    table.add_argument("--regime", action="append", help="several are allowed; default: all")
    table.add_argument("--seeds", default="4-7", help="such as 0-2 or 3,5")
    table.add_argument("--metric", default="Dice", choices=KEPT)
    table.add_argument("--control", help="arm to hold the others against; default: their own")
    table.add_argument("--markdown", action="store_true")
    return parser


def _add_only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="cells regime/dataset/arm/seed, with wildcards",
    )


def run_cells(options: argparse.Namespace) -> int:
    """Train cells until the time is up."""
    os.environ.update(nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1", nnUNet_compile="0")
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    from .runner import run
    from .training import Settings

    named = options.data or os.environ.get("MAPO_TEST_DATA")
    settings = Settings(
        work=options.work or Path(tempfile.gettempdir()) / "nnunetv2_mapo_study",
        data=Path(named) if named else None,
        device=options.device,
        threads=options.threads,
        steps=options.steps,
    )
    return 1 if run(list_cells(options.only), settings, options.minutes) else 0


def print_plan(options: argparse.Namespace) -> int:
    """Print the cells in their order, and how many are done."""
    from .results import path_of

    cells = list_cells(options.only)
    done = {cell for cell in cells if path_of(cell).exists()}
    for cell in cells:
        print(f"{'done   ' if cell in done else 'missing'}  {cell.name}")
    counts, finished = Counter(c.regime for c in cells), Counter(c.regime for c in done)
    print(", ".join(f"{name}: {finished[name]} of {number}" for name, number in counts.items()))
    return 0


def print_tables(options: argparse.Namespace) -> int:
    """Print the results."""
    from .tables import tabulate

    seeds = parse_seeds(options.seeds)
    how = {"control": options.control, "markdown": options.markdown}
    print(tabulate(options.regime, seeds, options.metric, **how))
    return 0


def parse_seeds(text: str) -> list[int]:
    """Seeds of a text such as `0-2,5`."""
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds
