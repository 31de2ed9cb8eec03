"""Sub-command for experts: choose."""

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


def add_choose(commands: Commands) -> None:
    """`choose`: which of several segmentations is better?"""
    text = (
        "Opens a page in which an expert says which of several segmentations of an image is the "
        "best and which the worst, for images that nobody has segmented. They come from any model "
        "of nnU-Net, with or without MAPO, by dropout; only images on which they differ are asked "
        "about, the most informative first. Every answer is on the disk at once, and any number of "
        "sittings and raters add to the same folder, from which a training learns."
    )
    parser = commands.add_parser(
        "choose",
        help="which segmentation is better? asks an expert, in a page",
        description=text,
        epilog="example: nnUNetv2_mapo choose MODEL_FOLDER -i UNLABELLED -o choices",
    )
    add_model(parser)
    add = parser.add_argument
    # fmt: off
    add("-i", dest="input", type=Path, metavar="IN",
        help="folder of images, named as nnUNetv2_predict wants them")
    add("-o", dest="output", type=Path, required=True, metavar="OUT",
        help="folder of choices, one for each model; a sitting goes on where the last one ended")
    add("-f", dest="fold", type=parse_fold, default=0, metavar="FOLD",
        help="0, 1, 2 ... or all (default: %(default)s)")
    add_checkpoint(parser)
    add("--regions", action="store_true",
        help="ask about one disputed region at a time, A or B, instead of whole images")
    add("--candidates", type=parse_count, default=6, metavar="N",
        help="segmentations of an image that are shown, 2 to 6 (default: %(default)s)")
    add("--repeat", type=float, default=0.1, metavar="SHARE",
        help="share of the questions that are asked twice, for the agreement of a rater with "
        "themselves (default: %(default)s)")
    add("--seed", type=int, default=0,
        help="decides candidates, order and repetitions (default: %(default)s)")
    add("--port", type=int, default=0,
        help="port of 127.0.0.1 for the page (default: a free one)")
    add("--no-browser", action="store_true", help="print the page's address, open nothing")
    add("--truth", type=Path, metavar="FOLDER",
        help="no page: a simulated expert answers from this hidden ground truth of all images")
    add("--error", type=float, metavar="P",
        help="probability that the simulated expert answers the wrong way round (default: 0)")
    add("--summary", action="store_true",
        help="only print the answers of each rater, and the agreement within and between raters")
    add("--export", type=Path, metavar="FOLDER",
        help="only write all candidates there, in the geometry and the file format of the images")
    add_device(parser)
    # fmt: on
    parser.set_defaults(run=_run_choose)


def _check_choose(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything slow.

    Raises:
        CommandError: It does not.
    """
    message = _check_folders(arguments)
    if not 2 <= arguments.candidates <= 6:
        message = f"--candidates {arguments.candidates} is not valid: 2 to 6 can be shown."
    if not 0 <= arguments.repeat <= 1:
        message = f"--repeat {arguments.repeat} is not valid: a share from 0 to 1 is needed."
    if arguments.error is not None and not arguments.truth:
        message = "--error is of the simulated expert: it needs --truth."
    if not 0 <= (arguments.error or 0) <= 1:
        message = f"--error {arguments.error} is not valid: a probability from 0 to 1 is needed."
    if not 0 <= arguments.port <= 65535:
        message = f"--port {arguments.port} is not valid: 0 to 65535, 0 for a free one."
    if message:
        raise CommandError(message)


def _check_folders(arguments: argparse.Namespace) -> str:
    """What is wrong with the folders, in words; empty if nothing is."""
    if not arguments.input and not (arguments.summary or arguments.export):
        return "Name the folder of unlabelled images with -i."
    for folder in filter(None, (arguments.input, arguments.truth)):
        if not folder.is_dir():
            return f"{folder} is not a folder."
        if folder.resolve() == arguments.output.resolve():
            return f"-o {arguments.output} is a folder of the input. Name a new one."
    return ""


def _run_choose(arguments: argparse.Namespace) -> None:
    _check_choose(arguments)
    if not arguments.summary:
        check_checkpoints(arguments)
    arguments.error = arguments.error or 0.0
    if arguments.export:
        make_folder(arguments.export)
    elif not arguments.summary:
        make_folder(arguments.output)
    announce_imports("PyTorch and nnU-Net")
    from nnunetv2_mapo.tools.choose.run import run_choose

    run_choose(arguments)
