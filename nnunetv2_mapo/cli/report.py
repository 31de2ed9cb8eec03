"""`nnUNetv2_mapo report`: one HTML page that shows what a training did."""

from __future__ import annotations

import argparse
from pathlib import Path


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
        epilog="example: nnUNetv2_mapo report nnUNetTrainer_MAPO__nnUNetPlans__3d_fullres",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL_FOLDER",
        help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION, MAPO or stock",
    )
    parser.add_argument(
        "-f", nargs="+", metavar="FOLD", help="folds to show (default: all that are there)"
    )
    parser.add_argument(
        "-o",
        type=Path,
        metavar="FILE",
        help="page to write (default: report.html in the model folder)",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="MODEL_FOLDER",
        help="other trainings of the same folds, such as the stock trainer's and the control's",
    )
    parser.add_argument(
        "--warmup",
        action="store_true",
        help="compare with the weights after the warm-up too: they segment the validation cases, "
        "once, into fold_X/validation_warmup, which takes as long as nnU-Net's validation",
    )
    parser.add_argument(
        "-device",
        default=None,
        choices=("cpu", "cuda", "mps"),
        help="where the network runs (default: cuda if PyTorch sees one, else cpu)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        CommandError: Something is missing or damaged.
    """
    from nnunetv2_mapo.tools.report.run import run_report

    run_report(arguments)
