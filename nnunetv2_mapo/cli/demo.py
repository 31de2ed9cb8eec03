"""`nnUNetv2_mapo demo`: the whole method on a small phantom, through nnU-Net's own commands."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from nnunetv2_mapo.tools.demo.folder import CONFIGURATIONS, DemoFolder
from nnunetv2_mapo.tools.nnunet import NNUNet


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
        epilog="example: nnUNetv2_mapo demo --output mapo_demo",
    )
    parser.add_argument(
        "--configuration",
        choices=CONFIGURATIONS,
        default="2d",
        help="configuration of nnU-Net (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("mapo_demo"),
        metavar="DIR",
        help="folder for everything that the demo makes (default: %(default)s)",
    )
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
    started = time.monotonic()
    folder = DemoFolder(arguments.output.expanduser().absolute(), arguments.configuration)
    folder.prepare(overwrite=arguments.overwrite)
    nnunet = NNUNet(folder.root)
    print(f"Everything goes to {folder.root}. Environment of nnU-Net's commands:")
    for name, value in nnunet.paths.items():
        print(f"  export {name}={value}")
    print("\nImporting PyTorch ...", flush=True)
    from nnunetv2_mapo.tools.demo.run import DemoRun

    results = DemoRun(folder, nnunet).run()
    folder.write_record({"configuration": folder.configuration, **results.to_dict()})
    print(f"\n{results}\n\nWhere everything is:")
    for path, meaning in {
        folder.pictures: "pairs and predictions",
        folder.fold: "checkpoints, preferences, progress_mapo.png",
        folder.predictions: "segmentations of the test cases, after the warm-up and final",
        folder.trainers: "how a trainer and a variant of MAPO are written",
        folder.logs: "full output of every command",
    }.items():
        print(f"  {path}\n    {meaning}")
    print(f"Finished in {(time.monotonic() - started) / 60:.1f} minutes.")
