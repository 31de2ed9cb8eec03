"""`nnUNetv2_mapo export`: a model of MAPO for an nnU-Net that does not have this package."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import DEVICES, parse_fold


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `export`."""
    parser = commands.add_parser(
        "export",
        help="can others use it? a plain model, without this package",
        description="Makes a plain nnU-Net model of one of MAPO, which any nnU-Net v2 without "
        "this package installs and predicts with. Before the output appears, an nnU-Net without "
        "this package must compute the same logits, bit for bit.",
        epilog="example: nnUNetv2_mapo export MODEL_FOLDER model.zip",
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL_FOLDER",
        help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION",
    )  # fmt: skip
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT", help="zip file to make; must not exist"
    )
    parser.add_argument(
        "-f", dest="folds", type=parse_fold, nargs="+", metavar="FOLD",
        help="folds to export (default: all that have a number, or fold_all if it is the only one)",
    )  # fmt: skip
    parser.add_argument(
        "-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth",
        help="checkpoint in the folder of each fold (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-device", choices=DEVICES, help="where to compute (default: cuda if there is one, or cpu)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Export.

    Raises:
        CommandError: The model, the output or the check of it is not as it must be.
    """
    print("Importing PyTorch ...", flush=True)
    from nnunetv2_mapo.tools.export.export import run_export

    run_export(arguments)
