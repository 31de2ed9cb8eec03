"""Which stage of the method an epoch belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Stage(NamedTuple):
    """Round 1 … `num_rounds`, or 0 for the warm-up, with its first epoch and the one after it."""

    round: int
    first_epoch: int
    end_epoch: int


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then rounds of equal length (the first ones an epoch longer if it does not divide).

    Short trainings degrade: with preferences wanted, the warm-up leaves at least one epoch and
    there are never more rounds than epochs left; one epoch alone is warm-up.
    """

    num_epochs: int  # length of the training, >= 1
    warmup_epochs: int  # wished; clipped to 1 … `num_epochs` - 1
    num_rounds: int  # wished; 0 makes every epoch warm-up

    @property
    def stages(self) -> list[Stage]:
        """Warm-up and rounds in their order."""
        warmup_end = max(1, min(self.warmup_epochs, self.num_epochs - 1))
        num_rounds = min(self.num_rounds, self.num_epochs - warmup_end)
        if num_rounds == 0:
            return [Stage(0, 0, self.num_epochs)]
        stages = [Stage(0, 0, warmup_end)]
        length, longer = divmod(self.num_epochs - warmup_end, num_rounds)
        for number in range(1, num_rounds + 1):
            start = stages[-1].end_epoch
            stages.append(Stage(number, start, start + length + (number <= longer)))
        return stages

    def stage(self, epoch: int) -> Stage:
        """Stage of `epoch`, 0 … `num_epochs` - 1.

        Raises:
            IndexError: `epoch` is outside the training.
        """
        for stage in self.stages:
            if stage.first_epoch <= epoch < stage.end_epoch:
                return stage
        message = f"Epoch {epoch} is outside a training of {self.num_epochs} epochs."
        raise IndexError(message)

    def __str__(self) -> str:
        warmup, *rounds = self.stages
        text = f"warm-up in epochs 0-{warmup.end_epoch - 1}"
        for stage in rounds:
            text += f", round {stage.round} in {stage.first_epoch}-{stage.end_epoch - 1}"
        return text
