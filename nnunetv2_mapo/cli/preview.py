"""`nnUNetv2_mapo preview`: would a trained model's candidates give preference pairs?"""

from __future__ import annotations

import argparse

from nnunetv2_mapo.cli.options import (
    add_checkpoint,
    add_device,
    add_model,
    parse_count,
    parse_fold,
)
from nnunetv2_mapo.method.config import RATES
from nnunetv2_mapo.support.errors import CommandError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `preview`."""
    text = (
        "Looks at a trained model, with or without MAPO, or at one that still trains: segments a "
        "few of its training cases at many dropout rates and says how the Dice falls with the "
        "rate, which share of the samples would have a preference pair (two segmentations at least "
        "tau apart in Dice) at each tau, and which rates and tau to train with. Trains nothing and "
        "writes nothing."
    )
    parser = commands.add_parser(
        "preview",
        help="are there pairs to learn from? asks a trained model",
        description=text,
        epilog="example: nnUNetv2_mapo preview -d 4 -c 3d_fullres -f 0",
    )
    add_model(parser)
    parser.add_argument(
        "-f", dest="fold", type=parse_fold, default=0, metavar="FOLD",
        help="0, 1, 2 ... or all (default: %(default)s)",
    )  # fmt: skip
    add_checkpoint(parser)
    parser.add_argument(
        "--cases", type=parse_count, default=8, metavar="N",
        help="training cases to look at, evenly spaced (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rates", type=float, nargs="+", metavar="RATE",
        help="dropout rates to look at besides MAPO's own, increasing from 0 (default: 0 to 0.5)",
    )  # fmt: skip
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the preview.

    Raises:
        CommandError: The rates, the model or its data cannot be used.
    """
    if arguments.rates and (problems := RATES.check("--rates", arguments.rates)):
        raise CommandError(*problems)
    print("Importing PyTorch ...", flush=True)
    from nnunetv2_mapo.tools.preview import run_preview

    run_preview(arguments)
