"""`nnUNetv2_mapo uncertainty`: where may a segmentation be wrong?"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import DEVICES, parse_count, parse_fold
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.uncertainty import FOLDER


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `uncertainty`."""
    text = (
        "Segments images exactly as nnUNetv2_predict does, then segments each one many times with "
        "dropout and writes, beside the segmentations, where these samples disagree: maps of the "
        "predictive entropy and of the vote variance in the geometry of the image, and a table "
        "that ranks the cases by their uncertainty. With the ground truth it also says whether "
        "that uncertainty is to be trusted. For models with and without MAPO."
    )
    parser = commands.add_parser(
        "uncertainty",
        help="where may a segmentation be wrong? maps, and their worth",
        description=text,
        epilog="example: nnUNetv2_mapo uncertainty -i imagesTs -o OUT -d 4 -c 3d_fullres -f 0 "
        "-tr nnUNetTrainer_MAPO",
    )
    add = parser.add_argument
    # fmt: off
    add("-i", dest="input", type=Path, required=True, metavar="IN",
        help="folder of images, named as nnUNetv2_predict wants them")
    add("-o", dest="output", type=Path, required=True, metavar="OUT",
        help=f"folder for the segmentations; the maps go to OUT/{FOLDER}")
    add("--labels", type=Path, metavar="FOLDER",
        help="ground truth of all images: adds Dice, calibration error and risk-coverage")
    add("-prev_stage_predictions", type=Path, metavar="DIR",
        help="segmentations of the previous stage, for cascades")
    _add_model(parser)
    add("--samples", type=int, default=20, metavar="N",
        help="segmentations with dropout of each image, 2 or more (default: %(default)s)")
    add("--rate", type=float, default=0.1,
        help="dropout rate, below 1; 0 is the plain network's softmax (default: %(default)s)")
    add("--disable_tta", action="store_true",
        help="segment without mirroring, as nnUNetv2_predict; samples are never mirrored")
    for option, what in (("-npp", "preprocessing"), ("-nps", "the export of segmentations")):
        add(option, type=parse_count, default=3, metavar="N",
            help=f"processes for {what}, as of nnUNetv2_predict (default: %(default)s)")
    add("-device", choices=DEVICES,
        help="where to compute (default: cuda if there is one, or cpu)")
    parser.set_defaults(run=run)
    # fmt: on


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # fmt: off
    add("-d", dest="dataset", metavar="DATASET", help="name or number of the data set")
    add("-c", dest="configuration", metavar="CONFIG", help="such as 2d, 3d_fullres")
    add("-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainer",
        help="trainer of the model (default: %(default)s)")
    add("-p", dest="plans", metavar="PLANS", default="nnUNetPlans",
        help="plans of the model (default: %(default)s)")
    add("-m", dest="model", type=Path, metavar="MODEL_FOLDER",
        help="folder TRAINER__PLANS__CONFIGURATION of a model, instead of -d, -c, -tr and -p")
    add("-f", dest="folds", nargs="+", type=parse_fold, metavar="FOLD", default=[0, 1, 2, 3, 4],
        help="folds whose mean counts (default: 0 1 2 3 4)")
    add("-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth",
        help="checkpoint in the folder of each fold (default: %(default)s)")
    # fmt: on


def run(arguments: argparse.Namespace) -> None:
    """Segment images and map their uncertainty.

    Raises:
        CommandError: An argument is not valid, or the model or the images cannot be used.
    """
    check(arguments)
    print("Importing PyTorch and nnU-Net ...", flush=True)
    from nnunetv2_mapo.tools.uncertainty.run import run_uncertainty

    run_uncertainty(arguments)


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused at once, and make the output's folder.

    Raises:
        CommandError: A number or folder is not valid, or the model is named by halves.
    """
    message, output = "", arguments.output
    if not 0 <= arguments.rate < 1:
        message = f"--rate {arguments.rate} is not valid: it must be at least 0 and below 1."
    if arguments.samples < 2:
        message = f"--samples {arguments.samples} is not valid: samples must be 2 or more."
    by_name = (arguments.dataset, arguments.configuration)
    if any(by_name) if arguments.model else not all(by_name):
        message = "Name the model either with -d and -c (and -tr, -p), or with -m and its folder."
    inputs = (arguments.input, arguments.labels, arguments.prev_stage_predictions, arguments.model)
    for folder in inputs:
        if folder and not folder.is_dir():
            message = f"{folder} is not a folder."
        if folder and folder.resolve() == output.resolve():
            message = f"-o {output} is a folder of the input: it would be overwritten."
    if message:
        raise CommandError(message)
    try:
        (output / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"Cannot write to {output} ({error}). Name another folder with -o."
        raise CommandError(message) from error
