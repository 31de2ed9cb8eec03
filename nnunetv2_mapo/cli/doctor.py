"""`nnUNetv2_mapo doctor`: can a training start now, and if not, what mends it?"""

from __future__ import annotations

import argparse

from nnunetv2_mapo.support.errors import CommandError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `doctor`."""
    text = (
        "Says whether a training can start: installation, trainer, nnU-Net's folders, disk, GPU "
        "and, with -d, the data set: the training is begun in a scratch folder, up to its first "
        "epoch. A line for each finding: ok, note, or PROBLEM with what mends it below; at the end "
        "the command that trains. Changes nothing. Exit code 0 only if a training can start (as "
        "far as can be said without -d), else 1."
    )
    parser = commands.add_parser(
        "doctor",
        help="can a training start here? if not, what mends it?",
        description=text,
        epilog="example: nnUNetv2_mapo doctor -d 4 -c 3d_fullres",
    )
    parser.add_argument(
        "-d", dest="dataset", metavar="DATASET", help="name or number of the data set to train on"
    )
    parser.add_argument(
        "-c", dest="configuration", metavar="CONFIGURATION",
        help="such as 2d (default: 3d_fullres if the plans have it, else 2d)",
    )  # fmt: skip
    parser.add_argument(
        "-p", dest="plans", metavar="PLANS", default="nnUNetPlans",
        help="plans to train with (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainer_MAPO",
        help="trainer to train with (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-f", dest="fold", metavar="FOLD", type=_fold, default="0",
        help="0, 1, 2 ... or all (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-device", choices=("cpu", "cuda", "mps"),
        help="where to train (default: cuda if there is one, mps, or cpu)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the doctor.

    Raises:
        CommandError: A training cannot start.
    """
    print("Importing PyTorch ...", flush=True)
    try:
        from nnunetv2_mapo.tools.doctor.run import run_doctor
    except ImportError as error:
        message = (
            f"The doctor lacks what it needs itself ({error}): python -m pip install packaging"
        )
        raise CommandError(message) from error
    run_doctor(arguments)


def _fold(text: str) -> str:
    if text == "all" or text.isdecimal():
        return text
    message = f"{text!r} is not valid: 0, 1, 2 ... or all"
    raise argparse.ArgumentTypeError(message)
