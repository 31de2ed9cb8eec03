"""Name of the trainer with which nnU-Net predicts with a model of MAPO, without this package."""

from __future__ import annotations

import inspect

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo.guards.fine_tuning import find_base_trainer
from nnunetv2_mapo.tools.models import ModelError
from nnunetv2_mapo.trainer import MAPOTrainer

_OURS = "nnunetv2.training.nnUNetTrainer.variants.mapo."  # where the wheel puts trainer_configs


def find_plain_trainer(trainer: type) -> str:
    """Trainer X of a class `X_MAPO`; a base of X if that lies in nnU-Net's folders and X does not.

    Prediction uses a trainer class for nothing but its `build_network_architecture`, so the name of
    a base class will do that has the very same function.

    Raises:
        ModelError: It is no trainer of MAPO, or a class of MAPO builds the network itself.
    """
    name, build = trainer.__name__, "build_network_architecture"
    if not issubclass(trainer, MAPOTrainer):
        message = f"{name} trains without MAPO: nnUNetv2_export_model_to_zip exports its models."
        raise ModelError(message)
    same = [
        base
        for base in find_base_trainer(trainer).__mro__
        if issubclass(base, nnUNetTrainer)
        and inspect.getattr_static(base, build) is inspect.getattr_static(trainer, build)
    ]
    if not same:
        message = (
            f"{name} builds its network itself, so no trainer without MAPO has it. Move its "
            f"{build} to a trainer without MAPO and derive it from that."
        )
        raise ModelError(message)
    theirs = [
        base
        for base in same
        if base.__module__.startswith("nnunetv2.") and not base.__module__.startswith(_OURS)
    ]
    return (theirs or same)[0].__name__
