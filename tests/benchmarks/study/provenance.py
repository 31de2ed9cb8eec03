"""What trained a cell: versions, commit, machine."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import nnunetv2_mapo

_PACKAGE = Path(nnunetv2_mapo.__file__).parent


@cache
def describe_code() -> dict[str, Any]:
    """Versions and commit when this process started."""
    sources = sorted(_PACKAGE.rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return {
        "torch": torch.__version__,
        "nnunetv2": version("nnunetv2"),
        "nnunetv2_mapo": nnunetv2_mapo.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "package_changed": bool(_git("status", "--porcelain", "--", str(_PACKAGE))),
        "package_sha256": digest[:12],
    }


def describe_machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Code, device and threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {**describe_code(), "device": name, "threads": threads}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=_PACKAGE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
