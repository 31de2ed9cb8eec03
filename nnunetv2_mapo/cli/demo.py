"""`nnUNetv2_mapo demo`: the whole method on a small phantom, through nnU-Net's own commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import make_folder


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `demo`."""
    text = (
        "Makes a small phantom data set and runs the whole method on it through nnU-Net's own "
        "commands: planning, training (a warm-up, then two rounds, each of which collects pairs of "
        "a better and a worse segmentation and learns from them), prediction and evaluation of "
        "test cases. Takes about 5 minutes on two CPU cores; uses a GPU if PyTorch sees one."
    )
    parser = commands.add_parser(
        "demo",
        help="what does MAPO do? all of it on a phantom, 5 minutes",
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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo.

    Raises:
        CommandError: The folder cannot be used, or a command of nnU-Net failed.
    """
    output = arguments.output.expanduser().absolute()
    make_folder(output)
    print("Importing PyTorch ...", flush=True)
    from nnunetv2_mapo.tools.demo.run import Demo

    demo = Demo(output, arguments.configuration)
    demo.prepare(overwrite=arguments.overwrite)
    demo.run()
