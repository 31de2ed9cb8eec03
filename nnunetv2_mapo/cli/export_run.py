"""The steps of an export: write beside the output, check, then let it appear."""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_mapo import __version__
from nnunetv2_mapo.cli.export_output import Output, explain_use, to_json
from nnunetv2_mapo.cli.nnunet import CommandError
from nnunetv2_mapo.cli.preview_run import choose_device
from nnunetv2_mapo.export import (
    ModelExport,
    copy_model_files,
    export_fold,
    open_fold,
    plan_export,
)
from nnunetv2_mapo.export_check import CheckError, FoldCheck, check_logits, compute_source_logits
from nnunetv2_mapo.files import WriteError
from nnunetv2_mapo.probe import NOISE, Probe, make_probe
from nnunetv2_mapo.trained_model import ModelError

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
            plan_export(folder.expanduser().resolve(), arguments.folds, arguments.checkpoint)
            for folder in arguments.models
        ]
        check_targets(exports)
        with output.scratch() as scratch:
            run = ExportRun(exports, device, scratch)
            records = run.write()
            output.publish(run.results, records, scratch)
    except (ModelError, CheckError, WriteError) as error:
        raise CommandError(str(error)) from error
    except torch.OutOfMemoryError as error:
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


@dataclass(frozen=True)
class ExportRun:
    """Writing and checking.

    Attributes:
        exports: Models.
        device: Where logits are computed.
        scratch: Folder for everything.
    """

    exports: Sequence[ModelExport]
    device: torch.device
    scratch: Path

    @property
    def results(self) -> Path:
        """Folder that becomes the output, laid out as `nnUNet_results`."""
        return self.scratch / "results"

    def write(self) -> list[dict[str, Any]]:
        """Write all models and check them; the record of each.

        Raises:
            ModelError: A model cannot be opened or exported.
            CheckError: An exported one is not the same.
            OSError: Something cannot be written.
        """
        checks: list[FoldCheck] = []
        records = []
        for export in self.exports:
            print(f"{export.source.name} -> {export.target}", flush=True)
            record, own = self._write_model(export, len(checks))
            records.append(record)
            checks += own
        print("Comparing with nnU-Net without nnunetv2-mapo ...", flush=True)
        check_logits(checks, self.device, self.scratch)
        print(f"  {len(checks)} of {len(checks)} folds: logits equal bit for bit", flush=True)
        for export, record in zip(self.exports, records, strict=True):
            (self.results / export.target / PROVENANCE).write_bytes(to_json(record))
        return records

    def _write_model(
        self, export: ModelExport, first: int
    ) -> tuple[dict[str, Any], list[FoldCheck]]:
        """Write a model and the source's logits; its record and what is to be checked."""
        target = self.results / export.target
        image = self.scratch / f"image_{first}.npy"
        probe: Probe | None = None
        folds, logits, checks = {}, {}, []
        for number, fold in enumerate(export.folds, first):
            model = open_fold(export, fold, self.device)
            if probe is None:
                probe = make_probe(model)
                np.save(image, probe.image)
                print(f"  {_describe(probe)}", flush=True)
            source = compute_source_logits(model, probe.image, self.device)
            expected = self.scratch / f"source_{number}.npy"
            np.save(expected, source)
            folds[str(fold)] = export_fold(export, fold, target)
            logits[str(fold)] = sha256(source.tobytes()).hexdigest()
            checks.append(FoldCheck(target, fold, export.checkpoint, image, expected))
            print(f"  fold {fold}: written", flush=True)
        copy_model_files(export, target)
        return self._record(export, folds, logits, probe), checks

    def _record(
        self, export: ModelExport, folds: dict[str, Any], logits: dict[str, str], probe: Any
    ) -> dict[str, Any]:
        return {
            "dataset": export.dataset,
            "configuration": export.configuration,
            "plans": export.plans,
            "source_trainer": export.trainer_name,
            "exported_trainer": export.plain.name,
            "needs_third_party_trainer": not export.plain.is_shipped,
            "folds": folds,
            "verification": {
                "case": probe.case,
                "shape": list(probe.image.shape),
                "device": str(self.device),
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


def _describe(probe: Probe) -> str:
    shape = " x ".join(map(str, probe.image.shape[1:]))
    if probe.case == NOISE:
        return f"compared on NOISE of {shape} voxels, not on a case: {probe.reason}"
    return f"compared on case {probe.case}, {shape} voxels"
