"""Options that several sub-commands share: one word for one thing."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TypeAlias

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import find_checkpoint, list_there

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DEVICES = ("cpu", "cuda", "mps")


def add_model(parser: argparse.ArgumentParser) -> None:
    """A trained model: `MODEL_FOLDER`, or `-d -c -tr -p` as nnU-Net's commands name it."""
    add = parser.add_argument
    # fmt: off
    add("model", type=Path, nargs="?", metavar="MODEL_FOLDER",
        help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION; or name it with -d and -c")
    add("-d", dest="dataset", metavar="DATASET", help="name or number of the data set")
    add("-c", dest="configuration", metavar="CONFIGURATION", help="such as 2d, 3d_fullres")
    add("-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainer",
        help="trainer of the model (default: %(default)s)")
    add("-p", dest="plans", metavar="PLANS", default="nnUNetPlans",
        help="plans of the model (default: %(default)s)")
    # fmt: on


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The checkpoint in the folder of each fold."""
    parser.add_argument(
        "-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth",
        help="checkpoint in the folder of each fold (default: %(default)s)",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the network runs."""
    parser.add_argument(
        "-device", choices=DEVICES, help="where to compute (default: cuda if there is one, or cpu)"
    )


def find_model(arguments: argparse.Namespace) -> None:
    """Make `arguments.model` the absolute folder of the model, which is there.

    A wrong name is refused here, where nothing slow has been imported.

    Raises:
        CommandError: The model is named by halves, or twice, or there is none.
    """
    names = (arguments.dataset, arguments.configuration)
    if any(names) if arguments.model else not all(names):
        message = "Name the model either by its MODEL_FOLDER, or with -d and -c (and -tr, -p)."
        raise CommandError(message)
    model = arguments.model
    if not model:
        folder = _find_dataset(arguments.dataset)
        model = folder / "__".join((arguments.trainer, arguments.plans, arguments.configuration))
    arguments.model = model.expanduser().resolve()
    if not arguments.model.is_dir():
        near = list_there(arguments.model.parent, "*__*__*")
        message = f"There is no trained model {arguments.model}. {near}"
        raise CommandError(message)


def check_checkpoints(arguments: argparse.Namespace) -> None:
    """Refuse a fold or a checkpoint that the model does not have, before anything slow.

    Raises:
        CommandError: It names those that there are.
    """
    for fold in arguments.folds or [] if "folds" in arguments else [arguments.fold]:
        find_checkpoint(arguments.model, fold, arguments.checkpoint)


def _find_dataset(name: str) -> Path:
    """Folder of a data set in nnUNet_results, by its name or number."""
    results = os.environ.get("nnUNet_results")  # noqa: SIM112  # nnU-Net's own name
    if not results:
        message = "nnUNet_results is not set: export nnUNet_results=FOLDER, or give a MODEL_FOLDER."
        raise CommandError(message)
    there = [path for path in Path(results).glob("*") if path.is_dir()]
    if name.isdecimal():
        number = f"Dataset{int(name):03d}_"
        found = [path for path in there if path.name.startswith(number)]
    else:
        found = [path for path in there if path.name == name]
    if len(found) != 1:
        message = (
            f"-d {name} is not one data set in {results}. {list_there(Path(results), 'Dataset*')}"
        )
        raise CommandError(message)
    return found[0]


def announce_imports(names: str) -> None:
    """Say why nothing happens for some seconds; on stderr, for the output is the result's."""
    print(f"Importing {names} ...", file=sys.stderr, flush=True)


def make_folder(folder: Path) -> None:
    """Make the folder of `-o` before anything slow begins.

    Raises:
        CommandError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"Cannot write to {folder} ({error}). Name another folder with -o."
        raise CommandError(message) from error


def parse_fold(text: str) -> int | str:
    """Fold as nnU-Net takes it: a number or `"all"`."""
    if text == "all" or text.isdecimal():
        return text if text == "all" else int(text)
    message = f"{text!r} is not valid: 0, 1, 2 ... or all"
    raise argparse.ArgumentTypeError(message)


def parse_count(text: str) -> int:
    """Whole number of at least 1."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    message = f"{text!r} is not valid: a number of at least 1 is needed"
    raise argparse.ArgumentTypeError(message)
