"""Methods of a trainer that nnU-Net calls by their signature, checked before it calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo.support.errors import InputError

_INIT = ("plans", "configuration", "fold", "dataset_json", "device")
_BUILD = (
    "plans_manager", "configuration_manager", "num_input_channels", "num_output_channels",
    "enable_deep_supervision",
)  # fmt: skip
_NUM_OLD_BUILD = 6  # arguments of the signature that nnU-Net calls old


def check_signatures(trainer: type) -> None:
    """Refuse a trainer whose `__init__` or `build_network_architecture` nnU-Net cannot call.

    What never reaches nnU-Net's own code, such as an `initialize` that builds the network by
    itself, may have any signature.

    Raises:
        InputError: One of them has other parameters; the message holds the lines to paste.
    """
    bare: Any = object.__new__(trainer)  # so that methods are bound as nnU-Net finds them
    init: Any = trainer.__init__  # type: ignore[misc]  # of this very class
    _, *parameters = inspect.signature(init).parameters
    if {*parameters} != {*_INIT} and not _mentions(init, "my_init_kwargs"):
        arguments = ", ".join(_INIT)
        message = (
            f"{_name(trainer, '__init__')} has the parameters {', '.join(parameters)}, but nnU-Net "
            f"makes a trainer with {arguments}, and keeps each parameter of __init__ by these "
            "names: no other one, no *args and no **kwargs. Paste:\n\n"
            f"    def __init__(self, {', '.join(_INIT[:-1])}, "
            'device=torch.device("cuda")):\n'
            f"        super().__init__({arguments})"
        )
        raise InputError(message)
    if any(_mentions(each, "build_network_architecture") for each in _overrides(trainer)):
        return
    build = inspect.signature(bare.build_network_architecture)
    num = len(_BUILD) if "plans_manager" in build.parameters else _NUM_OLD_BUILD
    try:
        build.bind(*range(num))
        predicting: Any = trainer  # has no instance
        build_to_predict = inspect.signature(predicting.build_network_architecture)
        build_to_predict.bind(*range(num - 1), enable_deep_supervision=False)
        fits = "dataset_json" not in build.parameters  # of its first signature, in another order
    except TypeError:
        fits = False
    if not fits:
        head, tail = ", ".join(_BUILD[:2]), ", ".join(_BUILD[2:])
        message = (
            f"{_name(trainer, 'build_network_architecture')} has the parameters "
            f"{', '.join(build.parameters)}, but nnU-Net calls it by position with {len(_BUILD)} "
            f"arguments if one is called plans_manager, else with the {_NUM_OLD_BUILD} of its old "
            "signature; to predict, without self and with enable_deep_supervision by name. "
            "Paste:\n\n"
            "    @staticmethod\n"
            f"    def build_network_architecture(\n        {head},\n        {tail}=True,\n    ):"
        )
        raise InputError(message)


def _overrides(trainer: type) -> list[Callable[..., Any]]:
    """`initialize` of each class but nnU-Net's own."""
    classes = [each for each in trainer.__mro__ if each is not nnUNetTrainer]
    return [vars(each)["initialize"] for each in classes if "initialize" in vars(each)]


def _mentions(function: Any, name: str) -> bool:
    """Whether the code of a function has this name in it."""
    return name in getattr(getattr(function, "__code__", None), "co_names", ())


def _name(trainer: type, method: str) -> str:
    """Method with the class that defines it."""
    owner = next(each for each in trainer.__mro__ if method in vars(each))
    return f"{owner.__name__}.{method}"
