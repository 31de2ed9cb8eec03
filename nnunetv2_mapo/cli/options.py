"""Options that several sub-commands share: one word for one thing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from nnunetv2_mapo.support.errors import CommandError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DEVICES = ("cpu", "cuda", "mps")


def add_model(parser: argparse.ArgumentParser) -> None:
    """A trained model: `MODEL_FOLDER`, or `-d -c -tr -p` as nnU-Net's commands name it."""
    add = parser.add_argument
    # fmt: off
    add("model", type=Path, nargs="?", metavar="MODEL_FOLDER",
        help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION; or name it with -d and -c")
    add("-d", dest="dataset", metavar="DATASET", help="name or number of the data set")
    add("-c", dest="configuration", metavar="CONFIGURATION", help="such as 2d, 3d_fullres")
    add("-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainer",
        help="trainer of the model (default: %(default)s)")
    add("-p", dest="plans", metavar="PLANS", default="nnUNetPlans",
        help="plans of the model (default: %(default)s)")
    # fmt: on


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The checkpoint in the folder of each fold."""
    parser.add_argument(
        "-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth",
        help="checkpoint in the folder of each fold (default: %(default)s)",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the network runs."""
    parser.add_argument(
        "-device", choices=DEVICES, help="where to compute (default: cuda if there is one, or cpu)"
    )


def check_model(arguments: argparse.Namespace) -> None:
    """Refuse a model that is named by halves, or twice.

    Raises:
        CommandError: It is.
    """
    names = (arguments.dataset, arguments.configuration)
    if any(names) if arguments.model else not all(names):
        message = "Name the model either by its MODEL_FOLDER, or with -d and -c (and -tr, -p)."
        raise CommandError(message)


def make_folder(folder: Path) -> None:
    """Make the folder of `-o` before anything slow begins.

    Raises:
        CommandError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"Cannot write to {folder} ({error}). Name another folder with -o."
        raise CommandError(message) from error


def parse_fold(text: str) -> int | str:
    """Fold as nnU-Net takes it: a number or `"all"`."""
    if text == "all" or text.isdecimal():
        return text if text == "all" else int(text)
    message = f"{text!r} is not valid: 0, 1, 2 ... or all"
    raise argparse.ArgumentTypeError(message)


def parse_count(text: str) -> int:
    """Whole number of at least 1."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    message = f"{text!r} is not valid: a number of at least 1 is needed"
    raise argparse.ArgumentTypeError(message)
