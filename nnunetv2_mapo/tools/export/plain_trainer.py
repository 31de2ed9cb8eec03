"""Name of the trainer with which nnU-Net predicts with a model of MAPO, without this package."""

from __future__ import annotations

import importlib.metadata
import inspect
from typing import NamedTuple

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo.guards.fine_tuning import find_base_trainer
from nnunetv2_mapo.tools.models import ModelError


class PlainTrainer(NamedTuple):
    """Trainer class that nnU-Net builds an exported model's network with.

    Attributes:
        name: Of the class.
        is_shipped: Whether nnU-Net has it; if not, a third party's trainer must be installed.
            None: nnU-Net is installed in a way that does not list its files.
    """

    name: str
    is_shipped: bool | None


def find_plain_trainer(trainer: type) -> PlainTrainer:
    """Trainer without MAPO that builds the same network, one of nnU-Net's own if there is one.

    Prediction uses a trainer class for nothing but its `build_network_architecture`, so the
    nearest base class that has the very same function does.

    Args:
        trainer: Trainer class of a model, with MAPO or without.

    Raises:
        ModelError: A class of MAPO builds the network itself.
    """
    same = [
        base
        for base in find_base_trainer(trainer).__mro__
        if issubclass(base, nnUNetTrainer) and _builder(base) is _builder(trainer)
    ]
    if not same:
        message = (
            f"{trainer.__name__} builds its network itself, so no trainer without MAPO has it. "
            "Move its build_network_architecture to a trainer without MAPO and derive it from that."
        )
        raise ModelError(message)
    shipped = {str(file) for file in importlib.metadata.files("nnunetv2") or ()}
    if _file(nnUNetTrainer) not in shipped:  # an editable installation lists none of its modules
        last = same[-1]
        return PlainTrainer(last.__name__, is_shipped=True if last is nnUNetTrainer else None)
    for base in same:
        if _file(base) in shipped:
            return PlainTrainer(base.__name__, is_shipped=True)
    return PlainTrainer(same[0].__name__, is_shipped=False)


def _builder(trainer: type) -> object:
    return inspect.getattr_static(trainer, "build_network_architecture")


def _file(trainer: type) -> str:
    """File of a class as a distribution lists it: people put trainers into nnU-Net's folders."""
    return f"{trainer.__module__.replace('.', '/')}.py"
