"""Where a network runs."""

from __future__ import annotations

import torch

from nnunetv2_mapo.support.errors import CommandError


def choose_device(name: str | None) -> torch.device:
    """Device of this name; without one a GPU if PyTorch sees one, else the CPU.

    Raises:
        CommandError: PyTorch does not see it.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    name = name or ("cuda" if there["cuda"] else "cpu")
    if not there[name]:
        message = f"PyTorch sees no {name}. There is: {', '.join(n for n in there if there[n])}."
        raise CommandError(message)
    return torch.device(name)
