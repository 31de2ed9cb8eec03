"""Work on a device: which one, within its memory, without using up its random numbers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from nnunetv2.utilities.helpers import empty_cache

from nnunetv2_mapo.support.errors import CommandError, MAPOError

T = TypeVar("T")


def choose_device(name: str | None) -> torch.device:
    """Device of this name; without one a GPU if PyTorch sees one, else the CPU.

    Raises:
        CommandError: PyTorch does not see it.
    """
    there = ["cpu"]
    there += ["cuda"] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    name = name or ("cuda" if "cuda" in there else "cpu")
    if name not in there:
        message = f"PyTorch sees no {name}. There is: {', '.join(there)}."
        raise CommandError(message)
    return torch.device(name)


class OutOfMemoryError(MAPOError, RuntimeError):
    """Not even a single image fits into memory; the message says what to do."""


def within_memory(
    work: Callable[[int], T],
    num_images: int,
    device: torch.device,
    *,
    advice: str,
    log: Callable[[str], None],
) -> tuple[int, T]:
    """Do work, with half as many images in a forward pass whenever memory runs out.

    Returns the number of images for the work to come, and the result.

    Args:
        work: What to do, with so many images in a forward pass.
        num_images: As many at first, >= 1.
        device: Where memory may run out.
        advice: Message of the `OutOfMemoryError` where a single image is too much.
        log: Takes what a user should know.
    """
    while True:
        try:
            return num_images, work(num_images)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if num_images == 1:
                raise OutOfMemoryError(advice) from error
        # Not in the except clause, whose traceback holds what is to be freed.
        num_images //= 2
        empty_cache(device)
        log(f"ran out of memory: {num_images} images a forward pass now")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on any device or in one of its libraries."""
    said = ("can't allocate memory", "MPS backend out of memory", "_STATUS_ALLOC_FAILED")
    is_cuda = isinstance(error, torch.cuda.OutOfMemoryError)
    return is_cuda or any(words in str(error) for words in said)


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
    """State of the generators of Python, numpy, torch and a GPU, in types for any checkpoint."""
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
