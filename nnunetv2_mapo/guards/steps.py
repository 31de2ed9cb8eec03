"""Training steps that must not be taken: their loss or their gradient is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

MOST_IN_A_ROW = 20


class NotFiniteError(RuntimeError):
    """Training cannot go on, because one step after the other is not finite."""


class StepGuard:
    """Skips steps whose gradient is not finite, counts them, and stops after too many in a row.

    Attributes:
        num_skipped: Steps skipped since `reset`.
    """

    def __init__(self) -> None:
        self.num_skipped = 0
        self._num_in_a_row = 0
        self._skips = False

    def watch(self, optimizer: Optimizer) -> None:
        """Let no step of this optimiser use a gradient that is not finite."""
        optimizer.register_step_pre_hook(self._forget_bad_gradient)

    def _forget_bad_gradient(self, optimizer: Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        # A sum is the cheapest that NaN and infinity go through.
        sums = [weight.grad.sum() for weight in weights if weight.grad is not None]
        if sums and not torch.stack(sums).isfinite().all():
            # Without gradients a step changes neither weights nor momentum.
            optimizer.zero_grad(set_to_none=True)
            self._skips = True

    def check(self, values: Mapping[str, Any], epoch: int, cases: Iterable[Any]) -> None:
        """Count the step that was just made, with its `loss` and other values, if it was skipped.

        Raises:
            NotFiniteError: Too many steps in a row were skipped.
        """
        # GradScaler skips a step itself, so that `watch` sees no gradient of a loss of NaN
        if not self._skips and math.isfinite(values["loss"]):
            self._num_in_a_row = 0
            return
        self._skips = False
        self.num_skipped += 1
        self._num_in_a_row += 1
        if self._num_in_a_row >= MOST_IN_A_ROW:
            seen = ", ".join(f"{name} {value}" for name, value in values.items())
            message = (
                f"{MOST_IN_A_ROW} training steps in a row had a loss or a gradient that is NaN or "
                f"infinite; none of them changed the weights. The last one, in epoch {epoch} with "
                f"{', '.join(map(str, cases))}: {seen}. Look at these cases for values that are "
                "not numbers, or lower the learning rate (initial_lr of the trainer). The "
                "checkpoints are from before; go on with --c."
            )
            raise NotFiniteError(message)

    def reset(self) -> int:
        """Number of steps skipped since the last call."""
        num_skipped, self.num_skipped = self.num_skipped, 0
        return num_skipped
