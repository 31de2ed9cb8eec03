"""Name of the trainer with which nnU-Net predicts with a model of MAPO, without this package."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo.trained_model import ModelError
from nnunetv2_mapo.trainer import MAPOTrainer

# Where the wheel installs `trainer_configs`; all else in the package nnunetv2 is nnU-Net's.
_INSTALLED = "nnunetv2.training.nnUNetTrainer.variants.mapo"


class PlainTrainer(NamedTuple):
    """Trainer class that nnU-Net builds an exported model's network with.

    Attributes:
        name: Of the class.
        is_shipped: Whether nnU-Net has it; if not, a third party's trainer must be installed.
    """

    name: str
    is_shipped: bool


def find_plain_trainer(trainer: type) -> PlainTrainer:
    """Trainer without MAPO that builds the same network, one of nnU-Net's own if there is one.

    Prediction uses a trainer class for nothing but its `build_network_architecture`, so the
    nearest base class that has the very same function does.

    Args:
        trainer: Trainer class of a model, with MAPO or without.

    Raises:
        ModelError: A class of MAPO builds the network itself.
    """
    plain = [
        base
        for base in trainer.__mro__
        if issubclass(base, nnUNetTrainer) and not issubclass(base, MAPOTrainer)
    ]
    same = [base for base in plain if _builder(base) is _builder(trainer)]
    shipped = [base for base in same if _is_shipped(base)]
    if shipped:
        return PlainTrainer(shipped[0].__name__, is_shipped=True)
    if plain[0] in same:
        return PlainTrainer(plain[0].__name__, is_shipped=False)
    message = (
        f"{trainer.__name__} builds its network itself, so no trainer without MAPO has it. "
        "Move its build_network_architecture to a trainer without MAPO and derive it from that."
    )
    raise ModelError(message)


def _builder(trainer: type) -> object:
    return inspect.getattr_static(trainer, "build_network_architecture")


def _is_shipped(trainer: type) -> bool:
    module = trainer.__module__
    is_ours = module == _INSTALLED or module.startswith(f"{_INSTALLED}.")
    return module.partition(".")[0] == "nnunetv2" and not is_ours
