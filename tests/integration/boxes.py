"""What tests know of the data set `boxes` and of the trainers that are made for it."""

from typing import Any

from nnunetv2_mapo.guards.rehearsal import PlantedRound

DATASET = "Dataset990_Boxes"


def is_rehearsal(trainer: Any) -> bool:
    """Whether a step is the one that is rehearsed before the first epoch."""
    return isinstance(trainer._mined, PlantedRound)
