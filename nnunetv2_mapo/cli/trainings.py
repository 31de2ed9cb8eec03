"""Sub-commands that look at trainings: demo, doctor, preview, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import (
    Commands,
    add_checkpoint,
    add_device,
    add_model,
    announce_imports,
    check_checkpoints,
    make_folder,
    parse_count,
    parse_fold,
)
from nnunetv2_mapo.method.valid import RATES
from nnunetv2_mapo.support.errors import CommandError


def add_demo(commands: Commands) -> None:
    """`demo`: the whole method on a small phantom, through nnU-Net's own commands."""
    text = (
        "Makes a small phantom data set and runs the whole method on it through nnU-Net's own "
        "commands: planning, training (a warm-up, then two rounds, each of which collects pairs of "
        "a better and a worse segmentation and learns from them), and the control without pairs. "
        "Ends with the verdict and a report. Takes about 6 minutes on two CPU cores; uses a GPU if "
        "PyTorch sees one."
    )
    parser = commands.add_parser(
        "demo",
        help="what does MAPO do? all of it on a phantom, 6 minutes",
        description=text,
        epilog="example: nnUNetv2_mapo demo -o mapo_demo",
    )
    parser.add_argument(
        "-c", "--configuration", choices=("2d", "3d_fullres"), default="2d",
        help="configuration of nnU-Net (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("mapo_demo"), metavar="DIR",
        help="folder for everything that the demo makes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete what an earlier demo made in DIR, nothing else, and start anew",
    )
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> None:
    output = arguments.output.expanduser().absolute()
    make_folder(output)
    announce_imports("PyTorch")
    from nnunetv2_mapo.tools.demo import Demo

    demo = Demo(output, arguments.configuration)
    demo.prepare(overwrite=arguments.overwrite)
    demo.run()


def add_doctor(commands: Commands) -> None:
    """`doctor`: can a training start now, and if not, what mends it?"""
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
    parser.set_defaults(run=_run_doctor)


def _run_doctor(arguments: argparse.Namespace) -> None:
    from nnunetv2_mapo.tools.doctor import run_doctor
    from nnunetv2_mapo.tools.doctor.checks import Asked

    names = ("dataset", "configuration", "plans", "trainer", "fold", "device")
    run_doctor(Asked(**{name: getattr(arguments, name) for name in names}))


def add_preview(commands: Commands) -> None:
    """`preview`: would a trained model's candidates give preference pairs?"""
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
    parser.set_defaults(run=_run_preview)


def _run_preview(arguments: argparse.Namespace) -> None:
    if arguments.rates and (problems := RATES.check("--rates", arguments.rates)):
        raise CommandError(*problems)
    check_checkpoints(arguments)
    announce_imports("PyTorch")
    from nnunetv2_mapo.tools.preview import run_preview

    run_preview(arguments)


def add_report(commands: Commands) -> None:
    """`report`: one HTML page that shows what a training did."""
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
    parser.set_defaults(run=_run_report)


def _run_report(arguments: argparse.Namespace) -> None:
    announce_imports("nnU-Net")
    from nnunetv2_mapo.tools.report import run_report

    run_report(arguments)
