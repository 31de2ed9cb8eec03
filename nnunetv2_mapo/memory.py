"""Mining within the memory of a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from nnunetv2.utilities.helpers import empty_cache

from nnunetv2_mapo.mining import Miner
from nnunetv2_mapo.randomness import seeded

T = TypeVar("T")


class OutOfMemoryError(RuntimeError):
    """Not even a single window fits into memory; the message says what to do."""


def within_memory(
    miner: Miner, work: Callable[[Miner], T], seed: str, log: Callable[[str], None]
) -> tuple[Miner, T]:
    """Do seeded work, with half as many windows in a forward pass whenever memory runs out.

    Args:
        miner: What does it.
        work: What to do with it.
        seed: With the number of windows it decides the candidates.
        log: Takes what a user should know.

    Returns:
        The miner for the work to come, and the result.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
    """
    while True:
        try:
            with seeded(seed, miner.device):
                return miner, work(miner)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if miner.windows_per_forward == 1:
                num_passes = miner.sampler.num_passes
                message = (
                    f"Mining runs out of memory on {miner.device} even with a single window of "
                    f"{tuple(miner.patch_size)} voxels, {num_passes} times in a forward pass. The "
                    "cases mined before are kept: free memory there and go on with --c"
                )
                message += ", or start anew with fewer candidates." if num_passes > 1 else "."
                raise OutOfMemoryError(message) from error
        # Not in the except clause, whose traceback holds what is to be freed.
        miner = replace(miner, windows_per_forward=miner.windows_per_forward // 2)
        empty_cache(miner.device)
        log(f"mining ran out of memory: {miner.windows_per_forward} windows a forward pass now")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
