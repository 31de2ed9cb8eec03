"""`nnUNetv2_mapo evaluate`: overlap, surface distances and volumes of segmentations."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import parse_count
from nnunetv2_mapo.support.errors import CommandError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `evaluate`."""
    text = (
        "Compares segmentations with the ground truth: Dice, IoU, average symmetric surface "
        "distance (ASD), 95th percentile of the Hausdorff distance (HD95), normalised surface "
        "Dice (NSD) and volume error of every case and class, in mm and ml with the spacing of "
        "the images. Prints the means, writes metrics.json and metrics.csv."
    )
    parser = commands.add_parser(
        "evaluate",
        help="how good are segmentations? Dice, distances, volumes",
        description=text,
        epilog="example: nnUNetv2_mapo evaluate PREDICTIONS --labels labelsTs",
    )
    add = parser.add_argument
    # fmt: off
    add("predictions", type=Path, metavar="PREDICTIONS",
        help="folder of segmentations, or a model folder TRAINER__PLANS__CONFIGURATION of "
        "nnUNet_results: then the validation of every fold is evaluated, and all folds together")
    add("--labels", type=Path, metavar="FOLDER",
        help="ground truth (default for a model folder: gt_segmentations of its data set in "
        "nnUNet_preprocessed)")
    add("-djfile", type=Path, metavar="FILE",
        help="dataset.json (default: the one that nnU-Net left in PREDICTIONS)")
    add("--tolerance", type=float, default=1.0, metavar="MM",
        help="distance up to which NSD takes a surface for right, in mm, in pixels for images "
        "without spacing (default: %(default)s)")
    add("-np", type=parse_count, metavar="N",
        help="worker processes (default: nnU-Net's, nnUNet_def_n_proc or 8)")
    add("-o", dest="output", type=Path, metavar="DIR",
        help="folder for the metrics (default: PREDICTIONS)")
    add("--chill", action="store_true",
        help="evaluate what there is: cases of the ground truth may lack a prediction, folds a "
        "finished validation")
    # fmt: on
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print the means, write the metrics.

    Raises:
        CommandError: Something is missing, cannot be read or written, or does not fit.
    """
    for folder in (arguments.predictions, arguments.labels):
        if folder is not None and not folder.is_dir():
            message = f"{folder} is not a folder. Give a folder of segmentations or of a model."
            raise CommandError(message)
    print("Importing nnU-Net and MONAI ...", flush=True)
    from nnunetv2_mapo.tools.evaluate.run import run_evaluate

    run_evaluate(arguments)
