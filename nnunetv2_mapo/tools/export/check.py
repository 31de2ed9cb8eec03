"""Does nnU-Net without this package compute what the model of MAPO computes, bit for bit?"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from numpy.typing import NDArray

from nnunetv2_mapo.tools.export import stock_logits
from nnunetv2_mapo.tools.models import TrainedModel

_NUM_LINES = 15  # of the child's output in a message


class CheckError(RuntimeError):
    """The exported model is not the source; the message says where it differs, or what failed."""


class FoldCheck(NamedTuple):
    """What nnU-Net alone is to compute, and what must come out.

    Attributes:
        model: Folder of the exported model.
        fold: Number, or `"all"`.
        checkpoint: File name of its checkpoint.
        image: File with the network's input.
        expected: File with the source's logits.
    """

    model: Path
    fold: int | str
    checkpoint: str
    image: Path
    expected: Path


def compute_source_logits(
    model: TrainedModel, image: NDArray[np.float32], device: torch.device
) -> NDArray[Any]:
    """Logits of the source as nnU-Net's prediction computes them.

    Args:
        model: Opened on the device.
        image: Network input, shape `(channels, z, y, x)`.
        device: Where to compute.

    Returns:
        Shape `(heads, z, y, x)`, float16.

    Raises:
        CheckError: The source itself cannot predict.
        torch.cuda.OutOfMemoryError: A GPU has too little memory.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # says that a CPU is no GPU
        predictor = stock_logits.make_predictor(str(device))
    predictor.manual_initialization(
        model.network,
        model.plans_manager,
        model.configuration_manager,
        [model.network.state_dict()],
        model.dataset_json,
        model.trainer_name,
        model.mirroring_axes,
    )
    predictor.network = model.network  # nnU-Net may have compiled it
    try:
        return stock_logits.compute_logits(predictor, image)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # infinite logits, or no memory of a CPU
        message = f"Fold {model.fold} of {model.folder} cannot predict: {error}"
        raise CheckError(message) from error


def check_logits(checks: Sequence[FoldCheck], device: torch.device, scratch: Path) -> None:
    """Let nnU-Net compute without this package, and compare with the sources.

    Args:
        checks: What to compute.
        device: Where to compute.
        scratch: Folder for what the two processes exchange.

    Raises:
        CheckError: The child process failed, or a bit differs.
    """
    logits = [scratch / f"stock_{number}.npy" for number in range(len(checks))]
    jobs = {
        "device": str(device),
        "num_threads": torch.get_num_threads(),  # sums depend on how they are shared out
        "jobs": [
            {
                "model": str(check.model),
                "fold": check.fold,
                "checkpoint": check.checkpoint,
                "image": str(check.image),
                "logits": str(file),
            }
            for check, file in zip(checks, logits, strict=True)
        ],
    }
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    _run(scratch / "jobs.json")
    for check, file in zip(checks, logits, strict=True):
        if describe := compare_bits(np.load(check.expected), np.load(file)):
            message = (
                f"Fold {check.fold} of {check.model.name} does not compute in nnU-Net alone what "
                f"the source computes: {describe}."
            )
            raise CheckError(message)


def compare_bits(source: NDArray[Any], exported: NDArray[Any]) -> str:
    """Say how two arrays differ; empty if every bit is the same."""
    forms = [f"{array.shape} {array.dtype}" for array in (source, exported)]
    if forms[0] != forms[1]:
        return f"logits are {forms[0]} in the source, {forms[1]} in the export"
    if source.tobytes() == exported.tobytes():
        return ""
    largest = np.nanmax(np.abs(source.astype(np.float64) - exported))
    return f"{np.sum(source != exported)} of {source.size} logits, by up to {largest:.3g}"


def _run(jobs: Path) -> None:
    environment = {
        **os.environ,
        "nnUNet_compile": "0",
        "nnUNet_def_n_proc": str(default_num_processes),  # nnU-Net limits its threads to that
    }
    done = subprocess.run(
        [sys.executable, stock_logits.__file__, str(jobs)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-_NUM_LINES:])
        message = (
            f"nnU-Net without nnunetv2-mapo cannot predict with the exported model. Its last lines:"
            f"\n{last}"
        )
        raise CheckError(message)
