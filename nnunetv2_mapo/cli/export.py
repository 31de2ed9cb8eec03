"""`nnUNetv2_mapo export`: models of MAPO for an nnU-Net that does not have this package."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `export`."""
    text = (
        "Turns trained models into plain nnU-Net models, which any nnU-Net v2 without this package "
        "installs and predicts with. Before the output appears, an nnU-Net without this package "
        "must compute the same logits, bit for bit."
    )
    parser = commands.add_parser(
        "export",
        help="can others use it? a plain model, without this package",
        description=text,
        epilog="example: nnUNetv2_mapo export MODEL_FOLDER model.zip",
    )
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL_FOLDER",
        help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION, MAPO or stock; several go "
        "into one output, such as both stages of a cascade or the members of an ensemble",
    )  # fmt: skip
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT",
        help="zip file (NAME.zip) or folder to make; neither may exist",
    )  # fmt: skip
    parser.add_argument(
        "-f", dest="folds", type=_fold, nargs="+", metavar="FOLD",
        help="folds to export (default: all that have a number, or fold_all if it is the only one)",
    )  # fmt: skip
    parser.add_argument(
        "-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth",
        help="checkpoint in the folder of each fold (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-device", choices=("cpu", "cuda", "mps"),
        help="where the logits are computed (default: cuda if PyTorch sees one, else cpu)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Export.

    Raises:
        CommandError: A model, the output or the check of it is not as it must be.
    """
    print("Importing PyTorch ...", flush=True)
    from nnunetv2_mapo.tools.export.run import run_export

    run_export(arguments)


def _fold(text: str) -> int | str:
    if text == "all" or text.isdecimal():
        return text if text == "all" else int(text)
    message = f"{text!r} is not valid: 0, 1, 2 ... or all"
    raise argparse.ArgumentTypeError(message)
