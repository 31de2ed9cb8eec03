"""`nnUNetv2_mapo doctor`: can a training start now, and if not, what mends it?"""

from __future__ import annotations

import argparse

from nnunetv2_mapo.cli.options import add_device, parse_fold


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `doctor`."""
    text = (
        "Says whether a training can start: versions, nnU-Net's folders, device, trainer and, with "
        "-d, data set and disk: the training is begun in a scratch folder, up to its first epoch. "
        "A line for each finding: ok, note, or PROBLEM with what mends it below; at the end the "
        "command that trains. A problem ends the checks. Changes nothing. Exit code 0 only if a "
        "training can start (as far as can be said without -d), else 1."
    )
    parser = commands.add_parser(
        "doctor",
        help="can a training start here? if not, what mends it?",
        description=text,
        epilog="example: nnUNetv2_mapo doctor -d 4 -c 3d_fullres",
    )
    add = parser.add_argument
    # fmt: off
    add("-d", dest="dataset", metavar="DATASET", help="name or number of the data set to train on")
    add("-c", dest="configuration", metavar="CONFIGURATION",
        help="such as 2d (default: 3d_fullres if the plans have it, else 2d)")
    add("-p", dest="plans", metavar="PLANS", default="nnUNetPlans",
        help="plans to train with (default: %(default)s)")
    add("-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainer_MAPO",
        help="trainer to train with (default: %(default)s)")
    add("-f", dest="fold", metavar="FOLD", type=parse_fold, default=0,
        help="0, 1, 2 ... or all (default: %(default)s)")
    # fmt: on
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the doctor.

    Raises:
        CommandError: A training cannot start.
    """
    from nnunetv2_mapo.tools.doctor import run_doctor
    from nnunetv2_mapo.tools.doctor.checks import Asked

    names = ("dataset", "configuration", "plans", "trainer", "fold", "device")
    run_doctor(Asked(**{name: getattr(arguments, name) for name in names}))
