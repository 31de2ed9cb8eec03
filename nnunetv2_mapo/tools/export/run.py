"""The steps of an export: write beside the output, check, then let it appear."""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_mapo import __version__
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import WriteError
from nnunetv2_mapo.tools.device import choose_device
from nnunetv2_mapo.tools.export.check import (
    CheckError,
    FoldCheck,
    check_logits,
    compute_source_logits,
)
from nnunetv2_mapo.tools.export.check_input import CheckInput, make_check_input
from nnunetv2_mapo.tools.export.export import (
    ModelExport,
    copy_model_files,
    export_fold,
    open_fold,
    plan_export,
)
from nnunetv2_mapo.tools.export.output import Output, explain_use, to_json
from nnunetv2_mapo.tools.models import ModelError

PROVENANCE = "mapo_export.json"  # in each exported model's folder


def run_export(arguments: argparse.Namespace) -> None:
    """Export from the parsed command line.

    Raises:
        CommandError: A model, the output or the check of it is not as it must be.
    """
    output = Output(arguments.output.expanduser().absolute())
    output.check()
    device = choose_device(arguments.device)
    exports: list[ModelExport] = []
    try:
        exports = [
            plan_export(folder.expanduser().absolute(), arguments.folds, arguments.checkpoint)
            for folder in arguments.models
        ]
        check_targets(exports)
        with output.scratch() as scratch:
            results = scratch / "results"
            records = write_models(exports, results, device, scratch)
            output.publish(results, records, scratch)
    except (ModelError, CheckError, WriteError) as error:
        raise CommandError(str(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        message = f"{device} has too little memory for one window. Free some, or use -device cpu."
        raise CommandError(message) from error
    except OSError as error:
        raise CommandError(output.explain(error, exports)) from error
    print("\n".join(explain_use(output, exports)))


def check_targets(exports: Sequence[ModelExport]) -> None:
    """Refuse models that would be the same one in the output.

    Raises:
        CommandError: Two would.
    """
    sources = defaultdict(list)
    for export in exports:
        sources[export.target].append(str(export.source))
    for target, folders in sources.items():
        if len(folders) > 1:
            message = (
                f"{' and '.join(folders)} would all become {target}. Without MAPO nnU-Net does not "
                "tell them apart: export each to an output of its own."
            )
            raise CommandError(message)


def write_models(
    exports: Sequence[ModelExport], results: Path, device: torch.device, scratch: Path
) -> list[dict[str, Any]]:
    """Write models and check them.

    Args:
        exports: Models.
        results: Folder for them, laid out as `nnUNet_results`.
        device: Where logits are computed.
        scratch: Folder for everything else.

    Returns:
        Record of each model, in JSON form.

    Raises:
        ModelError: A model cannot be opened or exported.
        CheckError: An exported one is not the same.
        OSError: Something cannot be written.
    """
    checks: list[FoldCheck] = []
    records = []
    for export in exports:
        print(f"{export.source.name} -> {export.target}", flush=True)
        record, own = _write_model(export, results / export.target, device, scratch, len(checks))
        records.append(record)
        checks += own
    print("Comparing with nnU-Net without nnunetv2-mapo ...", flush=True)
    check_logits(checks, device, scratch)
    print(f"  {len(checks)} of {len(checks)} folds: logits equal bit for bit", flush=True)
    for export, record in zip(exports, records, strict=True):
        (results / export.target / PROVENANCE).write_bytes(to_json(record))
    return records


def _write_model(
    export: ModelExport, target: Path, device: torch.device, scratch: Path, first: int
) -> tuple[dict[str, Any], list[FoldCheck]]:
    """Write a model and the source's logits; its record and what is to be checked."""
    image = scratch / f"image_{first}.npy"
    check_input: CheckInput | None = None
    folds, logits, checks = {}, {}, []
    for number, fold in enumerate(export.folds, first):
        model = open_fold(export, fold, device)
        if check_input is None:
            check_input = make_check_input(model)
            np.save(image, check_input.image)
            shape = " x ".join(map(str, check_input.image.shape[1:]))
            print(
                f"  compared on {check_input.kind}, {shape} voxels: {check_input.detail}",
                flush=True,
            )
        source = compute_source_logits(model, check_input.image, device)
        expected = scratch / f"source_{number}.npy"
        np.save(expected, source)
        folds[str(fold)] = export_fold(export, fold, target)
        logits[str(fold)] = sha256(source.tobytes()).hexdigest()
        checks.append(FoldCheck(target, fold, export.checkpoint, image, expected))
        print(f"  fold {fold}: written", flush=True)
    copy_model_files(export, target)
    return _record(export, folds, logits, check_input, device), checks


def _record(
    export: ModelExport,
    folds: dict[str, Any],
    logits: dict[str, str],
    check_input: Any,
    device: torch.device,
) -> dict[str, Any]:
    """What is known of a model: goes to others with it, so no names of cases and no paths."""
    return {
        "dataset": export.dataset,
        "configuration": export.configuration,
        "plans": export.plans,
        "source_trainer": export.trainer_name,
        "exported_trainer": export.plain.name,
        "is_trainer_of_nnunet": export.plain.is_shipped,
        "folds": folds,
        "verification": {
            "input": check_input.kind,
            "sha256_of_input": sha256(check_input.image.tobytes()).hexdigest(),
            "shape": list(check_input.image.shape),
            "device": str(device),
            "sha256_of_logits": logits,
        },
        "versions": {
            "nnunetv2_mapo": __version__,
            "nnunetv2": version("nnunetv2"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
