"""`nnUNetv2_mapo preview`: would a trained model's candidates give preference pairs?"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.method.config import RATES
from nnunetv2_mapo.support.errors import CommandError

DEVICES = ("cpu", "cuda", "mps")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `preview`."""
    text = (
        "Looks at a trained model, with or without MAPO, or at one that still trains: segments a "
        "few of its training cases at many dropout rates and says how the Dice falls with the "
        "rate, which share of the samples would have a preference pair (two segmentations at least "
        "tau apart in Dice) at each tau, and which rates and tau to train with. Trains nothing and "
        "writes nothing unless told to with -o."
    )
    parser = commands.add_parser(
        "preview",
        help="are there pairs to learn from? asks a trained model",
        description=text,
        epilog="example: nnUNetv2_mapo preview 4 3d_fullres 0 -tr nnUNetTrainer",
    )
    parser.add_argument("dataset", metavar="DATASET", help="name or number of the data set")
    parser.add_argument("configuration", metavar="CONFIGURATION", help="such as 2d, 3d_fullres")
    parser.add_argument("fold", metavar="FOLD", type=parse_fold, help="0, 1, 2 ... or all")
    parser.add_argument(
        "-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainer",
        help="trainer of the model (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-p", dest="plans", metavar="PLANS", default="nnUNetPlans",
        help="plans of the model (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth",
        help="checkpoint in the folder of the fold (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--cases", type=parse_count, default=8, metavar="N",
        help="training cases to look at, evenly spaced (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rates", type=float, nargs="+", metavar="RATE",
        help="dropout rates to look at besides MAPO's own, increasing from 0 (default: 0 to 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "-device", choices=DEVICES, help="where to compute (default: cuda if there is one, or cpu)"
    )
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="DIR",
        help="folder for preview.png and preview.json (default: print only)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the preview.

    Raises:
        CommandError: The rates, the folder for the results, the model or its data cannot be used.
    """
    if arguments.rates and (problems := RATES.check("--rates", arguments.rates)):
        raise CommandError(*problems)
    if arguments.output:
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"Cannot write to {arguments.output} ({error}). Name another folder with -o."
            raise CommandError(message) from error
    print("Importing PyTorch ...", flush=True)
    from nnunetv2_mapo.tools.preview.run import run_preview

    run_preview(arguments)


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
