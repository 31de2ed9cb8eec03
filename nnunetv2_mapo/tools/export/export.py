"""A model of MAPO becomes a plain one of nnU-Net, zipped by nnU-Net's own export."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_mapo import __version__
from nnunetv2_mapo.method.progress import register_keys
from nnunetv2_mapo.support.device import choose_device
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import WriteError, complete_or_absent
from nnunetv2_mapo.tools.export import stock_logits
from nnunetv2_mapo.tools.export.plain_trainer import find_plain_trainer
from nnunetv2_mapo.tools.models import ModelError, find_checkpoint, open_model, read_model
from nnunetv2_mapo.tools.nnunet import find_command

RECORD = "mapo_export.json"  # in the exported model's folder; `uncertainty` reads the settings
# Keys of dataset.json and summary.json that hold names of cases and paths of their files.
_CASES = ("dataset", "training", "test", "metric_per_case")
_NUM_LINES = 15  # of a failed command's output in a message


class Export(NamedTuple):
    """A model (folder, folds in order, name of checkpoints) and its new names in nnU-Net."""

    source: Path
    folds: list[int | str]
    checkpoint: str
    dataset: str
    trainer: str
    plans: str
    configuration: str

    @property
    def target(self) -> str:
        """Folder of the exported model in `nnUNet_results`, with slashes."""
        return f"{self.dataset}/{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def options(self) -> str:
        """What names the exported model in nnU-Net's commands."""
        names = f"-d {self.dataset} -c {self.configuration} -tr {self.trainer} -p {self.plans}"
        return f"{names} -f {' '.join(map(str, self.folds))} -chk {self.checkpoint}"


def run_export(arguments: argparse.Namespace) -> None:
    """Export from the parsed command line: the output appears when it is complete and checked.

    Raises:
        CommandError: The output exists or cannot be written, the model cannot be exported, or
            nnU-Net alone does not compute the same with it.
    """
    source, output = (path.expanduser().absolute() for path in (arguments.model, arguments.output))
    if output.exists() or output.is_symlink():
        message = f"{output} exists. Delete it, or name another OUTPUT."
        raise CommandError(message)
    device = str(choose_device(arguments.device))
    try:
        export = plan_export(source, arguments.folds, arguments.checkpoint)
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export_") as scratch:
            archive = write_archive(export, device, Path(scratch))
            with complete_or_absent(output, archive.stat().st_size) as unfinished:
                archive.replace(unfinished)
    except (ModelError, WriteError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        message = f"{output} could not be written: {error}"
        raise CommandError(message) from error
    print(f"Written: {output} ({output.stat().st_size / 1e6:.1f} MB). To use it:")
    print(f"  nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(output))}")
    print(f"  nnUNetv2_predict {export.options} -i INPUT_FOLDER -o OUTPUT_FOLDER")
    print(f"Installing overwrites a model of the same name in that nnUNet_results: {export.target}")
    if export.trainer != "nnUNetTrainer":
        print(f"If {export.trainer} does not come with that nnU-Net, install it there as well.")


def plan_export(folder: Path, chosen: list[int | str] | None, checkpoint: str) -> Export:
    """Find out what a model becomes.

    Args:
        folder: `nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        chosen: Folds to export; None for those of `find_folds`.
        checkpoint: File name of the checkpoint in the folder of each fold.

    Raises:
        ModelError: Something is missing or damaged, or no trainer without MAPO can replace its own.
    """
    folds = sorted(set(chosen or find_folds(folder)), key=lambda fold: (fold == "all", fold))
    for fold in folds:
        find_checkpoint(folder, fold, checkpoint)  # before gigabytes are written
    model = open_model(folder, folds[0], checkpoint, torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()):  # says where it looks
        trainer = find_plain_trainer(recursive_find_trainer_class_by_name(model.trainer_name))
    plans = model.plans_manager
    names = plans.dataset_name, trainer, plans.plans_name, model.configuration
    return Export(folder, folds, checkpoint, *names)


def find_folds(folder: Path) -> list[int | str]:
    """Folds that nnU-Net predicts with by default: those with a number, else `"all"`.

    Raises:
        ModelError: There is none.
    """
    names = [path.name.removeprefix("fold_") for path in folder.glob("fold_*")]
    found: list[int | str] = [int(name) for name in names if name.isdecimal()]
    if found or "all" in names:
        return found or ["all"]
    message = f"{folder} is no model folder: there is no fold_0, fold_1 … in it."
    raise ModelError(message)


def write_archive(export: Export, device: str, scratch: Path) -> Path:
    """Let nnU-Net write the zip file into a folder, and compare what it computes with the source.

    Raises:
        ModelError: A file of the source is missing or damaged.
        CommandError: nnU-Net cannot export or predict, or computes something else.
        WriteError: A checkpoint cannot be written.
        OSError: Another file cannot be read or written.
    """
    results, archive, installed = (scratch / name for name in ("results", "zip", "installed"))
    record = write_plain_model(export, results / export.target)
    zip_command = find_command("nnUNetv2_export_model_to_zip")
    run_nnunet([zip_command, *export.options.split(), "-o", archive], results)
    print("Comparing with nnU-Net without nnunetv2-mapo ...", flush=True)
    shutil.unpack_archive(archive, installed, "zip")  # all that nnU-Net's own import does
    for mode, model in (("with", export.source), ("without", installed / export.target)):
        (scratch / mode).mkdir()
        options = [mode, model, export.checkpoint, device, scratch / mode, *export.folds]
        run_nnunet([sys.executable, stock_logits.__file__, *options], results)
    for fold in export.folds:
        source, stock = (np.load(scratch / mode / f"{fold}.npy") for mode in ("with", "without"))
        if source.tobytes() != stock.tobytes():
            message = (
                f"Fold {fold} of {export.target} does not compute in nnU-Net alone what the source "
                f"computes: {np.sum(source != stock)} of {source.size} logits differ."
            )
            raise CommandError(message)
        print(f"  fold {fold}: logits equal bit for bit", flush=True)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(f"{export.target}/{RECORD}", json.dumps(record, indent=1))
    return archive


def run_nnunet(command: list[Any], results: Path) -> None:
    """Run a command with this folder as `nnUNet_results`.

    Raises:
        CommandError: It failed.
    """
    command = [str(word) for word in command]
    environment = {**os.environ, "nnUNet_results": str(results), "nnUNet_compile": "0"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-_NUM_LINES:])
        message = f"{shlex.join(command)} failed. Its last lines:\n{last}"
        raise CommandError(message)


def write_plain_model(export: Export, target: Path) -> dict[str, Any]:
    """Write the plain model's folder for nnU-Net's export; gives what `RECORD` is to hold.

    A file that the export insists on and prediction does not, such as `progress.png`, is empty if
    there is none.
    """
    settings = {}
    names = ["plans.json", "dataset.json", "dataset_fingerprint.json"]
    for fold in export.folds:
        path = find_checkpoint(export.source, fold, export.checkpoint)
        content = read_model(path)
        mapo = content.get("mapo", {}).get("config")
        settings[str(fold)] = {"trainer": content["trainer_name"], "mapo": mapo}
        names += [f"fold_{fold}/progress.png", f"fold_{fold}/validation/summary.json"]
        written = target / f"fold_{fold}" / export.checkpoint
        written.parent.mkdir(parents=True)
        with complete_or_absent(written, path.stat().st_size) as unfinished:
            torch.save(plain_checkpoint(content, export.trainer), unfinished)
    results = f"crossval_results_folds_{folds_tuple_to_string(export.folds)}"
    for name in ("summary.json", "postprocessing.json", "postprocessing.pkl"):
        names += [f"{results}/{name}"] * (export.source / results / name).is_file()
    for name in names:
        copy_file(export.source / name, target / name)
    return {"nnunetv2_mapo": __version__, "folds": settings}


def copy_file(source: Path, target: Path) -> None:
    """Copy a file without names of cases; empty if there is none.

    Raises:
        ModelError: It is damaged.
    """
    content = source.read_bytes() if source.is_file() else b""
    if source.suffix == ".json":
        try:
            content = json.dumps(without_cases(json.loads(content or "{}")), indent=4).encode()
        except ValueError as error:
            message = f"{source} is damaged: {error}"
            raise ModelError(message) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def without_cases(content: dict[str, Any]) -> dict[str, Any]:
    """Content of a JSON file of nnU-Net without names of cases and paths of their files."""
    return {key: value for key, value in content.items() if key not in _CASES}


def plain_checkpoint(checkpoint: dict[str, Any], trainer: str) -> dict[str, Any]:
    """Checkpoint that a training with another trainer, without MAPO, would have saved."""
    ours: dict[str, list[Any]] = {}
    register_keys(ours, 0)
    logged = {key: values for key, values in checkpoint["logging"].items() if key not in ours}
    origin = checkpoint["init_args"]
    origin = {**origin, "dataset_json": without_cases(origin["dataset_json"])}
    kept = {key: value for key, value in checkpoint.items() if key != "mapo"}
    return {**kept, "trainer_name": trainer, "logging": logged, "init_args": origin}
