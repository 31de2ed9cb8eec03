"""Work within the memory of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from nnunetv2.utilities.helpers import empty_cache

T = TypeVar("T")


class OutOfMemoryError(RuntimeError):
    """Not even a single window fits into memory; the message says what to do."""


def within_memory(
    work: Callable[[int], T],
    num_windows: int,
    device: torch.device,
    *,
    advice: str,
    log: Callable[[str], None],
) -> tuple[int, T]:
    """Do work, with half as many windows in a forward pass whenever memory runs out.

    Args:
        work: What to do, with so many windows in a forward pass.
        num_windows: As many at first, >= 1.
        device: Where memory may run out.
        advice: What to do if a single window is too much.
        log: Takes what a user should know.

    Returns:
        The number of windows for the work to come, and the result.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
    """
    while True:
        try:
            return num_windows, work(num_windows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if num_windows == 1:
                raise OutOfMemoryError(advice) from error
        # Not in the except clause, whose traceback holds what is to be freed.
        num_windows //= 2
        empty_cache(device)
        log(f"ran out of memory: {num_windows} windows a forward pass now")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
