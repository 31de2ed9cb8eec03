"""A model of MAPO becomes a plain one of nnU-Net, zipped by nnU-Net's own export."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_mapo.guards.fine_tuning import find_base_trainer
from nnunetv2_mapo.method.progress import register_keys
from nnunetv2_mapo.support.device import choose_device
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import complete_or_absent, find_checkpoint
from nnunetv2_mapo.tools import stock_logits
from nnunetv2_mapo.tools.models import (
    ModelError,
    open_model,
    read_model,
)
from nnunetv2_mapo.tools.nnunet import find_command
from nnunetv2_mapo.trainer import MAPOTrainer

# Keys of dataset.json and summary.json that hold names of cases and paths of their files.
_CASES = ("dataset", "training", "test", "metric_per_case")
_OURS = "nnunetv2.training.nnUNetTrainer.variants.mapo."  # where the wheel puts trainer_configs


def run_export(arguments: argparse.Namespace) -> None:
    """Export from the parsed command line: the output appears when it is complete and checked.

    Raises:
        CommandError: The output exists or cannot be written, the model cannot be exported, or
            nnU-Net alone does not compute the same with it.
    """
    source, checkpoint = arguments.model, arguments.checkpoint
    output = arguments.output.expanduser().absolute()
    if output.exists() or output.is_symlink():
        message = f"{output} exists. Delete it, or name another file with -o."
        raise CommandError(message)
    find_folds = nnUNetPredictor.auto_detect_available_folds  # those with a number
    folds = arguments.folds or find_folds(str(source), checkpoint) or ["all"]
    folds = sorted(folds, key=str)  # as nnU-Net names what it found out about them together
    model = open_model(source, folds[0], checkpoint, torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()):  # says where it looks
        trainer = find_plain_trainer(recursive_find_trainer_class_by_name(model.trainer_name))
    dataset, plans = model.plans_manager.dataset_name, model.plans_manager.plans_name
    options = f"-d {dataset} -c {model.configuration} -tr {trainer} -p {plans}"
    options += f" -f {' '.join(map(str, folds))} -chk {checkpoint}"
    target = f"{dataset}/{trainer}__{plans}__{model.configuration}"
    device = str(choose_device(arguments.device))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export_") as scratch_name:
            scratch = Path(scratch_name)
            results, archive, installed = (scratch / n for n in ("results", "zip", "installed"))
            write_plain_model(source, folds, checkpoint, results / target, trainer)
            zip_command = find_command("nnUNetv2_export_model_to_zip")
            run_nnunet(zip_command, *options.split(), "-o", archive, nnUNet_results=str(results))
            shutil.unpack_archive(archive, installed, "zip")  # all that nnU-Net's own import does
            compare_logits(source, installed / target, folds, checkpoint, device, scratch)
            archive.replace(output)
    except OSError as error:
        message = f"{output} could not be written: {error}"
        raise CommandError(message) from error
    print(f"Written: {output} ({output.stat().st_size / 1e6:.1f} MB). To use it:")
    print(f"  nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(output))}")
    print(f"  nnUNetv2_predict {options} -i INPUT_FOLDER -o OUTPUT_FOLDER")
    print(f"Installing overwrites a model of the same name in that nnUNet_results: {target}")
    if trainer != "nnUNetTrainer":
        print(f"If {trainer} does not come with that nnU-Net, install it there as well.")


def find_plain_trainer(trainer: type) -> str:
    """Trainer X of a class `X_MAPO`; a base of X if that lies in nnU-Net's folders and X does not.

    Prediction uses a trainer class for nothing but its `build_network_architecture`, so the name of
    a base class will do that has the very same function.

    Raises:
        ModelError: It is no trainer of MAPO, or a class of MAPO builds the network itself.
    """
    name, build = trainer.__name__, "build_network_architecture"
    if not issubclass(trainer, MAPOTrainer):
        message = f"{name} trains without MAPO: nnUNetv2_export_model_to_zip exports its models."
        raise ModelError(message)
    same = [
        base
        for base in find_base_trainer(trainer).__mro__
        if issubclass(base, nnUNetTrainer)
        and inspect.getattr_static(base, build) is inspect.getattr_static(trainer, build)
    ]
    if not same:
        message = (
            f"{name} builds its network itself, so no trainer without MAPO has it. Move its "
            f"{build} to a trainer without MAPO and derive it from that."
        )
        raise ModelError(message)
    modules = [base.__module__ for base in same]
    is_theirs = [name.startswith("nnunetv2.") and not name.startswith(_OURS) for name in modules]
    return same[is_theirs.index(True) if any(is_theirs) else 0].__name__


def write_plain_model(
    source: Path, folds: list[int | str], checkpoint: str, target: Path, trainer: str
) -> None:
    """Write the plain model's folder for nnU-Net's export.

    A file that the export insists on and prediction does not, such as `progress.png`, is empty if
    there is none.
    """
    names = ["plans.json", "dataset.json", "dataset_fingerprint.json"]
    for fold in folds:
        path = find_checkpoint(source, fold, checkpoint)
        names += [f"fold_{fold}/progress.png", f"fold_{fold}/validation/summary.json"]
        written = target / f"fold_{fold}" / checkpoint
        written.parent.mkdir(parents=True)
        with complete_or_absent(written, path.stat().st_size) as unfinished:
            torch.save(plain_checkpoint(read_model(path), trainer), unfinished)
    results = f"crossval_results_folds_{folds_tuple_to_string(folds)}"
    for name in ("summary.json", "postprocessing.json", "postprocessing.pkl"):
        names += [f"{results}/{name}"] * (source / results / name).is_file()
    for name in names:
        copy_file(source / name, target / name)


def plain_checkpoint(checkpoint: dict[str, Any], trainer: str) -> dict[str, Any]:
    """Checkpoint that a training with another trainer, without MAPO, would have saved."""
    ours: dict[str, list[Any]] = {}
    register_keys(ours, 0)
    logged = {key: values for key, values in checkpoint["logging"].items() if key not in ours}
    origin = checkpoint["init_args"]
    origin = {**origin, "dataset_json": without_cases(origin["dataset_json"])}
    kept = {key: value for key, value in checkpoint.items() if key != "mapo"}
    return {**kept, "trainer_name": trainer, "logging": logged, "init_args": origin}


def copy_file(source: Path, target: Path) -> None:
    """Copy a file without names of cases; empty if there is none."""
    content = source.read_bytes() if source.is_file() else b""
    if source.suffix == ".json":
        content = json.dumps(without_cases(json.loads(content or "{}")), indent=4).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def without_cases(content: dict[str, Any]) -> dict[str, Any]:
    """Content of a JSON file of nnU-Net without names of cases and paths of their files."""
    return {key: value for key, value in content.items() if key not in _CASES}


def compare_logits(
    source: Path, plain: Path, folds: list[int | str], checkpoint: str, device: str, scratch: Path
) -> None:
    """Compare what nnU-Net computes with both models, with the plain one without this package.

    Raises:
        CommandError: nnU-Net cannot predict, or computes something else.
    """
    print("Comparing with nnU-Net without nnunetv2-mapo ...", flush=True)
    for mode, model in (("with", source), ("without", plain)):
        script = [sys.executable, stock_logits.__file__]
        run_nnunet(*script, mode, model, checkpoint, device, scratch, *folds)
    for fold in folds:
        ours, stock = (np.load(scratch / f"{mode}_{fold}.npy") for mode in ("with", "without"))
        if ours.tobytes() != stock.tobytes():
            message = (
                f"Fold {fold} of {plain.name} does not compute in nnU-Net alone what the source "
                f"computes: {np.sum(ours != stock)} of {ours.size} logits differ."
            )
            raise CommandError(message)
        print(f"  fold {fold}: logits equal bit for bit", flush=True)


def run_nnunet(*command: Any, **variables: str) -> None:
    """Run a command with environment variables.

    Raises:
        CommandError: It failed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env={**os.environ, "nnUNet_compile": "0", **variables}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        message = f"{shlex.join(words)} failed. Its last lines:\n{last}"
        raise CommandError(message)
