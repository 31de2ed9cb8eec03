"""Sub-commands for what a training made: evaluate, compare, export, uncertainty."""

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
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.uncertainty import FOLDER, USUAL_RATE


def add_evaluate(commands: Commands) -> None:
    """`evaluate`: overlap, surface distances and volumes of segmentations."""
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
    add("--lesions", action="store_true",
        help="F1, precision, recall and Dice of lesions as well, and volume of false and missed "
        "ones")
    add("--cldice", action="store_true",
        help="clDice as well, for tubes such as vessels; takes long for large masks")
    add("-np", type=parse_count, metavar="N",
        help="worker processes (default: nnU-Net's, nnUNet_def_n_proc or 8)")
    add("-o", dest="output", type=Path, metavar="DIR",
        help="folder for the metrics (default: PREDICTIONS)")
    add("--chill", action="store_true",
        help="evaluate what there is: cases of the ground truth may lack a prediction, folds a "
        "finished validation")
    # fmt: on
    parser.set_defaults(run=_run_evaluate)


def _run_evaluate(arguments: argparse.Namespace) -> None:
    for folder in (arguments.predictions, arguments.labels):
        if folder is not None and not folder.is_dir():
            message = f"{folder} is not a folder. Give a folder of segmentations or of a model."
            raise CommandError(message)
    announce_imports("nnU-Net and MONAI")
    from nnunetv2_mapo.tools.evaluate.run import run_evaluate

    run_evaluate(arguments)


def add_compare(commands: Commands) -> None:
    """`compare`: methods on the same cases, with what can and cannot be concluded."""
    text = (
        "Says whether preferences helped: difference in Dice of a training with MAPO to its "
        "control, 95 % interval, verdict, pairs of each round, what that means and what to do "
        "next. This one comparison is chosen by what was trained; all others (other folders, other "
        "metrics) are exploratory and corrected for their number. Reads what nnUNetv2_mapo "
        "evaluate wrote, or else nnU-Net's own Dice and IoU."
    )
    parser = commands.add_parser(
        "compare",
        help="did it help, by how much, is it certain?",
        description=text,
        epilog="example: nnUNetv2_mapo compare nnUNetTrainer__*__2d nnUNetTrainer_MAPO__*__2d",
    )
    add = parser.add_argument
    # fmt: off
    add("folders", type=Path, nargs="+", metavar="FOLDER",
        help="two or more, the baseline first: model folders TRAINER__PLANS__CONFIGURATION of "
        "nnUNet_results, or folders of segmentations that were evaluated")
    add("-f", dest="folds", nargs="+", type=parse_fold, metavar="FOLD",
        help="folds of the models to compare (default: all)")
    add("-o", dest="output", type=Path, metavar="DIR",
        help="folder for comparison.html and comparison.json")
    add("--table", type=Path, metavar="FILE",
        help="write the table: numbers to a file that ends in .csv, what is shown to one in .tex")
    add("--details", action="store_true",
        help="print scores, every metric, p values and costs as well")
    # fmt: on
    parser.set_defaults(run=_run_compare)


def _run_compare(arguments: argparse.Namespace) -> None:
    if len(arguments.folders) < 2:
        message = "A comparison needs two folders or more, the baseline first."
        raise CommandError(message)
    if missing := [str(folder) for folder in arguments.folders if not folder.is_dir()]:
        message = f"There is no folder {', '.join(missing)}."
        raise CommandError(message)
    if arguments.table and arguments.table.suffix not in (".csv", ".tex"):
        message = f"--table {arguments.table} is not valid: its name must end in .csv or .tex."
        raise CommandError(message)
    announce_imports("nnU-Net")
    from nnunetv2_mapo.tools.compare.tables import run_compare

    run_compare(arguments)


def add_export(commands: Commands) -> None:
    """`export`: a model of MAPO for an nnU-Net that does not have this package."""
    parser = commands.add_parser(
        "export",
        help="can others use it? a plain model, without this package",
        description="Makes a plain nnU-Net model of one of MAPO, which any nnU-Net v2 without "
        "this package installs and predicts with. Before the zip file appears, an nnU-Net without "
        "this package must compute the same logits, bit for bit.",
        epilog="example: nnUNetv2_mapo export MODEL_FOLDER -o model.zip",
    )
    add_model(parser)
    parser.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="FILE",
        help="zip file to make; must not exist",
    )  # fmt: skip
    parser.add_argument(
        "-f", dest="folds", type=parse_fold, nargs="+", metavar="FOLD",
        help="folds to export (default: all that have a number, or fold_all if it is the only one)",
    )  # fmt: skip
    add_checkpoint(parser)
    add_device(parser)
    parser.set_defaults(run=_run_export)


def _run_export(arguments: argparse.Namespace) -> None:
    check_checkpoints(arguments)
    announce_imports("PyTorch and nnU-Net")
    from nnunetv2_mapo.tools.export import run_export

    run_export(arguments)


def add_uncertainty(commands: Commands) -> None:
    """`uncertainty`: where may a segmentation be wrong?"""
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
    add("--rate", type=float,
        help=f"dropout rate, below 1; 0 is the plain network's softmax (default: {USUAL_RATE}, "
        "or less where the network was trained with less)")
    add("--disable_tta", action="store_true",
        help="segment without mirroring, as nnUNetv2_predict; samples are never mirrored")
    for option, what in (("-npp", "preprocessing"), ("-nps", "the export of segmentations")):
        add(option, type=parse_count, default=3, metavar="N",
            help=f"processes for {what}, as of nnUNetv2_predict (default: %(default)s)")
    add_device(parser)
    # fmt: on
    parser.set_defaults(run=_run_uncertainty)


def _run_uncertainty(arguments: argparse.Namespace) -> None:
    message, output = "", arguments.output
    if arguments.rate is not None and not 0 <= arguments.rate < 1:
        message = f"--rate {arguments.rate} is not valid: it must be at least 0 and below 1."
    for folder in filter(None, (arguments.input, arguments.labels, arguments.model)):
        if not folder.is_dir():
            message = f"{folder} is not a folder."
        if folder.resolve() == output.resolve():
            message = f"-o {output} is a folder of the input: it would be overwritten."
    if message:
        raise CommandError(message)
    check_checkpoints(arguments)
    make_folder(output / FOLDER)
    announce_imports("PyTorch and nnU-Net")
    from nnunetv2_mapo.tools.uncertainty.run import run_uncertainty

    run_uncertainty(arguments)
