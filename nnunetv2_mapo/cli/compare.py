"""`nnUNetv2_mapo compare`: methods on the same cases, with what can and cannot be concluded."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import parse_fold
from nnunetv2_mapo.support.errors import CommandError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `compare`."""
    text = (
        "Compares methods on the same cases: mean, standard deviation and median of each metric, "
        "difference of each case to the first method, 95 % bootstrap interval of its mean, "
        "Wilcoxon signed-rank test with Holm's correction, wins, ties and losses, and what each "
        "training cost. Reads what nnUNetv2_mapo evaluate wrote, or else nnU-Net's own Dice and "
        "IoU."
    )
    parser = commands.add_parser(
        "compare",
        help="is one method better, by how much, is it certain?",
        description=text,
        epilog="example: nnUNetv2_mapo compare nnUNetTrainer__*__2d nnUNetTrainer_MAPO__*__2d",
    )
    add = parser.add_argument
    # fmt: off
    add("folders", type=Path, nargs="+", metavar="FOLDER",
        help="two or more, the baseline first: model folders TRAINER__PLANS__CONFIGURATION of "
        "nnUNet_results, or folders of segmentations that were evaluated")
    add("-f", dest="folds", nargs="+", type=parse_fold, metavar="FOLD",
        help="folds of the models to compare (default: all)")
    add("--metrics", nargs="+", metavar="NAME",
        help="metrics to compare (default: all); fewer, chosen beforehand, need a smaller "
        "correction")
    add("-o", dest="output", type=Path, metavar="DIR",
        help="folder for comparison.html and comparison.json")
    # fmt: on
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Compare, write the files, print the tables.

    Raises:
        CommandError: The folders cannot be compared, or the files not be written.
    """
    if len(arguments.folders) < 2:
        message = "A comparison needs two folders or more, the baseline first."
        raise CommandError(message)
    if missing := [str(folder) for folder in arguments.folders if not folder.is_dir()]:
        message = f"There is no folder {', '.join(missing)}."
        raise CommandError(message)
    from nnunetv2_mapo.tools.compare.tables import run_compare

    run_compare(arguments)
