"""Which stage of the method an epoch belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
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

    What has begun stays: where a training is continued with another length, the rounds that are
    over keep their epochs, and the one that has begun shares the others with those to come.
    """

    num_epochs: int  # length of the training, >= 1
    warmup_epochs: int  # wished; clipped to 1 … `num_epochs` - 1
    num_rounds: int  # wished; 0 makes every epoch warm-up
    begun: tuple[int, ...] = ()  # first epoch of rounds 1, 2 … that have begun

    @property
    def stages(self) -> list[Stage]:
        """Warm-up and rounds in their order."""
        starts = self.begun or (max(1, min(self.warmup_epochs, self.num_epochs - 1)),)
        num_over = len(starts) - 1  # rounds, besides the warm-up
        num_epochs_left = max(self.num_epochs - starts[-1], len(self.begun) > 0)
        num_rounds = min(self.num_rounds - num_over, num_epochs_left)
        if num_rounds == 0:
            return [Stage(0, 0, self.num_epochs)]
        stages = [Stage(number, *ends) for number, ends in enumerate(pairwise((0, *starts)))]
        length, longer = divmod(num_epochs_left, num_rounds)
        for place in range(num_rounds):
            start = stages[-1].end_epoch
            stages.append(Stage(num_over + 1 + place, start, start + length + (place < longer)))
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
