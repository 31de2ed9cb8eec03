"""`nnUNetv2_mapo report`: one HTML page that shows what a training did."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import add_model, parse_fold


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `report`."""
    text = (
        "Writes one HTML page about a trained model: learning curves, what mining found in each "
        "round, pictures of preference pairs, metrics, and the comparison with other trainings. "
        "The page holds everything it shows and works without a network. It is read from the "
        "model's folder; pictures need nnUNet_preprocessed too."
    )
    parser = commands.add_parser(
        "report",
        help="what did a training do? one page, curves and pictures",
        description=text,
        epilog="example: nnUNetv2_mapo report -d 4 -c 3d_fullres -tr nnUNetTrainer_MAPO",
    )
    add_model(parser)
    parser.add_argument(
        "-f", dest="folds", type=parse_fold, nargs="+", metavar="FOLD",
        help="folds to show (default: all that are there)",
    )  # fmt: skip
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FILE",
        help="page to write (default: report.html in the model folder)",
    )  # fmt: skip
    parser.add_argument(
        "--compare", type=Path, nargs="+", default=[], metavar="MODEL_FOLDER",
        help="other trainings of the same folds, such as the stock trainer's and the control's",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        CommandError: Something is missing or damaged.
    """
    from nnunetv2_mapo.tools.report import run_report

    run_report(arguments)
