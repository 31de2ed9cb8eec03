"""`nnUNetv2_mapo sweep`: trainings that differ in settings, from one file."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `sweep`."""
    text = (
        "Varies settings of MAPO: from a JSON file with the values to try, writes a trainer class "
        "for each combination and the commands that train and compare them; with --run also runs "
        "them, one after another. A run that was stopped goes on with the same command: what is "
        "finished is not trained again. Whatever is finished is tabulated: Dice, and its "
        "difference to the control."
    )
    parser = commands.add_parser(
        "sweep",
        help="which settings suit my data? trains several, compares them",
        description=text,
        epilog="example: nnUNetv2_mapo sweep tau.json --run",
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="JSON file, such as "
        '{"dataset": "4", "configuration": "3d_fullres", "folds": [0], '
        '"settings": {"tau": [0.05, 0.1, 0.2]}}',
    )
    parser.add_argument(
        "-o",
        type=Path,
        metavar="FOLDER",
        help="folder for trainers, commands, logs and comparison (default: beside FILE, with its "
        "name)",
    )
    parser.add_argument(
        "--run", action="store_true", dest="is_run", help="train what is not finished yet"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the sweep; run it if asked; tabulate what is finished.

    Raises:
        CommandError: The file is no sweep, its folder holds another one, a trainer or the data
            set is missing, or a training failed.
    """
    from nnunetv2_mapo.cli.sweep_run import run_sweep

    file = arguments.file.expanduser().absolute()
    folder = arguments.o.expanduser().absolute() if arguments.o else file.with_suffix("")
    run_sweep(file, folder, is_run=arguments.is_run)
