"""`nnUNetv2_mapo uncertainty`: where may a segmentation be wrong?"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunetv2_mapo.cli.preview import DEVICES, parse_fold
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.uncertainty import FOLDER


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `uncertainty`."""
    text = (
        "Segments images exactly as nnUNetv2_predict does, then segments each one many times with "
        "dropout and writes, beside the segmentations, where these samples disagree: maps of the "
        "predictive entropy and of the vote variance in the geometry of the image, and a table "
        "that says which cases are uncertain. With the ground truth it also says whether that "
        "uncertainty is to be trusted. For models with and without MAPO."
    )
    parser = commands.add_parser(
        "uncertainty",
        help="where may a segmentation be wrong? maps, and their worth",
        description=text,
        epilog="example: nnUNetv2_mapo uncertainty -i imagesTs -o OUT -d 4 -c 3d_fullres -f 0 "
        "-tr nnUNetTrainer_MAPO",
    )
    _add_folders(parser)
    _add_model(parser)
    parser.add_argument(
        "--samples", type=int, default=20, metavar="N",
        help="segmentations with dropout of each image, 2 or more (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=float, default=0.1,
        help="dropout rate, below 1; 0 is the plain network's softmax (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-step_size", type=float, default=0.5, metavar="SIZE",
        help="step of the sliding window, as of nnUNetv2_predict (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--disable_tta", action="store_true",
        help="segment without mirroring, as nnUNetv2_predict; samples are never mirrored",
    )  # fmt: skip
    parser.add_argument(
        "--continue_prediction", action="store_true",
        help="leave cases alone whose segmentation and maps are there",
    )  # fmt: skip
    for option, what in (("-npp", "preprocessing"), ("-nps", "the export of segmentations")):
        parser.add_argument(
            option, type=int, default=_number_of_processes(f"nnUNet_{option[1:]}"), metavar="N",
            help=f"processes for {what}, as of nnUNetv2_predict (default: 3)",
        )  # fmt: skip
    parser.add_argument(
        "-device", choices=DEVICES, help="where to compute (default: cuda if there is one, or cpu)"
    )
    parser.set_defaults(run=run)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i", dest="input", type=Path, required=True, metavar="IN",
        help="folder of images, named as nnUNetv2_predict wants them",
    )  # fmt: skip
    parser.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="OUT",
        help=f"folder for the segmentations; the maps go to OUT/{FOLDER}",
    )  # fmt: skip
    parser.add_argument(
        "--labels", type=Path, metavar="FOLDER",
        help="ground truth of all images: adds Dice, calibration error and risk-coverage",
    )  # fmt: skip
    parser.add_argument(
        "-prev_stage_predictions", type=Path, metavar="DIR",
        help="segmentations of the previous stage, for cascades",
    )  # fmt: skip


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", dest="dataset", metavar="DATASET", help="name or number of the data set"
    )
    parser.add_argument("-c", dest="configuration", metavar="CONFIG", help="such as 2d, 3d_fullres")
    parser.add_argument(
        "-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainer",
        help="trainer of the model (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-p", dest="plans", metavar="PLANS", default="nnUNetPlans",
        help="plans of the model (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-m", dest="model", type=Path, metavar="MODEL_FOLDER",
        help="folder TRAINER__PLANS__CONFIGURATION of a model, instead of -d, -c, -tr and -p",
    )  # fmt: skip
    parser.add_argument(
        "-f", dest="folds", nargs="+", type=parse_fold, metavar="FOLD", default=[0, 1, 2, 3, 4],
        help="folds whose mean counts (default: 0 1 2 3 4)",
    )  # fmt: skip
    parser.add_argument(
        "-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth",
        help="checkpoint in the folder of each fold (default: %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Segment images and map their uncertainty.

    Raises:
        CommandError: An argument is not valid, or the model or the images cannot be used.
    """
    check_numbers(arguments)
    check_folders(arguments)
    print("Importing PyTorch and nnU-Net ...", flush=True)
    from nnunetv2_mapo.tools.uncertainty.run import run_uncertainty

    run_uncertainty(arguments)


def check_numbers(arguments: argparse.Namespace) -> None:
    """Refuse numbers that are not valid.

    Raises:
        CommandError: One is not.
    """
    for option, value, is_valid, valid in (
        ("--rate", arguments.rate, 0 <= arguments.rate < 1, "at least 0 and below 1"),
        ("--samples", arguments.samples, arguments.samples >= 2, "of at least 2"),
        ("-step_size", arguments.step_size, 0 < arguments.step_size <= 1, "above 0, at most 1,"),
        ("-npp", arguments.npp, arguments.npp >= 1, "of at least 1"),
        ("-nps", arguments.nps, arguments.nps >= 1, "of at least 1"),
    ):
        if not is_valid:
            message = f"{option} {value} is not valid: a number {valid} is needed."
            raise CommandError(message)


def check_folders(arguments: argparse.Namespace) -> None:
    """Refuse folders that are not there or would be overwritten, and a model named by halves.

    Raises:
        CommandError: It is so.
    """
    if bool(arguments.model) == bool(arguments.dataset or arguments.configuration) or (
        not arguments.model and not (arguments.dataset and arguments.configuration)
    ):
        message = "Name the model either with -d and -c (and -tr, -p), or with -m and its folder."
        raise CommandError(message)
    for option, folder in (
        ("-i", arguments.input),
        ("--labels", arguments.labels),
        ("-prev_stage_predictions", arguments.prev_stage_predictions),
        ("-m", arguments.model),
    ):
        if folder is None:
            continue
        if not folder.is_dir():
            message = f"{option} {folder} is not a folder."
            raise CommandError(message)
        if folder.resolve() == arguments.output.resolve():
            message = f"-o {arguments.output} is the folder of {option}: it would be overwritten."
            raise CommandError(message)
    try:
        (arguments.output / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"Cannot write to {arguments.output} ({error}). Name another folder with -o."
        raise CommandError(message) from error


def _number_of_processes(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) else 3  # as nnUNetv2_predict takes it
