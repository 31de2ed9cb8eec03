"""`nnUNetv2_mapo uncertainty`: where may a segmentation be wrong?"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_mapo.cli.options import (
    add_checkpoint,
    add_device,
    add_model,
    make_folder,
    parse_count,
    parse_fold,
)
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
        epilog="example: nnUNetv2_mapo uncertainty MODEL_FOLDER -i imagesTs -o OUT",
    )
    add = parser.add_argument
    # fmt: off
    add_model(parser)
    add("-i", dest="input", type=Path, required=True, metavar="IN",
        help="folder of images, named as nnUNetv2_predict wants them")
    add("-o", dest="output", type=Path, required=True, metavar="OUT",
        help=f"folder for the segmentations; the maps go to OUT/{FOLDER}")
    add("-f", dest="folds", nargs="+", type=parse_fold, metavar="FOLD", default=[0, 1, 2, 3, 4],
        help="folds whose mean counts (default: 0 1 2 3 4)")
    add_checkpoint(parser)
    add("--labels", type=Path, metavar="FOLDER",
        help="ground truth of all images: adds Dice, calibration error and risk-coverage")
    add("--samples", type=parse_count, default=20, metavar="N",
        help="segmentations with dropout of each image (default: %(default)s)")
    add("--rate", type=float, default=0.1,
        help="dropout rate, below 1; 0 is the plain network's softmax (default: %(default)s)")
    add("--disable_tta", action="store_true",
        help="segment without mirroring, as nnUNetv2_predict; samples are never mirrored")
    for option, what in (("-npp", "preprocessing"), ("-nps", "the export of segmentations")):
        add(option, type=parse_count, default=3, metavar="N",
            help=f"processes for {what}, as of nnUNetv2_predict (default: %(default)s)")
    add_device(parser)
    # fmt: on
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Segment images and map their uncertainty.

    Raises:
        CommandError: An argument is not valid, or the model or the images cannot be used.
    """
    message, output = "", arguments.output
    if not 0 <= arguments.rate < 1:
        message = f"--rate {arguments.rate} is not valid: it must be at least 0 and below 1."
    for folder in filter(None, (arguments.input, arguments.labels, arguments.model)):
        if not folder.is_dir():
            message = f"{folder} is not a folder."
        if folder.resolve() == output.resolve():
            message = f"-o {output} is a folder of the input: it would be overwritten."
    if message:
        raise CommandError(message)
    make_folder(output / FOLDER)
    print("Importing PyTorch and nnU-Net ...", flush=True)
    from nnunetv2_mapo.tools.uncertainty.run import run_uncertainty

    run_uncertainty(arguments)
