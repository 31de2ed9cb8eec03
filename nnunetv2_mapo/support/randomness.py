"""Random numbers: seeded for mining, kept in checkpoints, not used up where they must not be."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def seeded(seed: str, device: torch.device) -> Iterator[None]:
    """Seed torch from a text inside a `with` block; its random state is as before afterwards."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    with untouched(device):
        torch.manual_seed(number)
        yield


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Give every generator back the state that it had before a `with` block."""
    state = read_state(device)
    try:
        yield
    finally:
        write_state(state, device)


def read_state(device: torch.device) -> dict[str, Any]:
    """State of the generators of Python, numpy and torch, in types that any checkpoint may hold.

    Args:
        device: Its generator is included if it is a GPU's.
    """
    state: Any = np.random.get_state()  # noqa: NPY002  # nnU-Net draws from this generator
    name, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def write_state(state: dict[str, Any], device: torch.device) -> None:
    """Undo `read_state`; a GPU's generator is left alone if its state was not read."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002  # as above
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
