"""`nnUNetv2_mapo export`: a model of MAPO for an nnU-Net that does not have this package."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import add_checkpoint, add_device, add_model, parse_fold


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `export`."""
    parser = commands.add_parser(
        "export",
        help="can others use it? a plain model, without this package",
        description="Makes a plain nnU-Net model of one of MAPO, which any nnU-Net v2 without "
        "this package installs and predicts with. Before the zip file appears, an nnU-Net without "
        "this package must compute the same logits, bit for bit.",
        epilog="example: nnUNetv2_mapo export MODEL_FOLDER -o model.zip",
    )
    add_model(parser)
    parser.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="FILE",
        help="zip file to make; must not exist",
    )  # fmt: skip
    parser.add_argument(
        "-f", dest="folds", type=parse_fold, nargs="+", metavar="FOLD",
        help="folds to export (default: all that have a number, or fold_all if it is the only one)",
    )  # fmt: skip
    add_checkpoint(parser)
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Export.

    Raises:
        CommandError: The model, the output or the check of it is not as it must be.
    """
    print("Importing PyTorch and nnU-Net ...", flush=True)
    from nnunetv2_mapo.tools.export.export import run_export

    run_export(arguments)
