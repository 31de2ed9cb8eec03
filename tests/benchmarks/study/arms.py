"""What is compared: each arm is a trainer class."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nnunetv2_mapo.method.config import RATES_3D

from .protocol import Regime

_MODULES = {
    "": "mapo_default",
    "_NoPreference": "mapo_no_preference",
    "_FineTune": "mapo_fine_tune",
    "_FineTune_NoPreference": "mapo_fine_tune",
}


class UnknownSettingsError(ValueError):
    """The installed package does not know an arm's settings; the message says which."""


@dataclass(frozen=True)
class Arm:
    """MAPO with settings.

    Attributes:
        settings: Of `MAPOConfig`, on top of those that are shipped.
        variant: Of the shipped trainer, such as `"_NoPreference"`.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    variant: str = ""


STOCK = "stock"  # the base trainer without MAPO
CONTROL = "control"  # MAPO's dropout without preferences: what every other arm is held against

# Dropout of training that drops nothing; as many candidates as by default.
DRY = {
    "rates_2d": tuple(1e-9 * step for step in range(11)),
    "rates_3d": tuple(1e-9 * step for step in range(7)),
}

ARMS: dict[str, Arm | None] = {
    STOCK: None,
    CONTROL: Arm(variant="_NoPreference"),
    "mapo": Arm(),
    "paper_loss": Arm(
        {
            "rates": "fixed",
            "pair": "case",
            "agree": False,
            "tau": 0.3,
            "likelihood": "image",
            "beta": 0.1,
            "lambda_supervised": 0.5,
            "preference_dropout": "off",
        }
    ),
    # one choice at a time
    "case_pairs": Arm(
        {
            "pair": "case",
            "agree": False,
            "likelihood": "disagreement",
            "rates": "fixed",
            "tau": 0.1,
        }
    ),
    "same_masks": Arm({"preference_dropout": "same masks"}),
    "no_dropout": Arm({"preference_dropout": "off"}),
    "fixed_rates": Arm({"rates": "fixed"}),
    "fall_005": Arm({"rates_dice_fall": 0.05}),
    "fall_02": Arm({"rates_dice_fall": 0.2}),
    "kappa_2": Arm({"kappa": 2.0}),
    "kappa_1": Arm({"kappa": 1.0}),
    "kappa_4": Arm({"kappa": 4.0}),
    "wrong_too": Arm({"agree": False}),
    "dry": Arm(DRY),  # its control is the stock trainer
    "strong_dropout": Arm({"rates_3d": RATES_3D}),
    "control_strong": Arm({"rates_3d": RATES_3D}, "_NoPreference"),
}


def read_shipped(variant: str) -> Any:
    """`MAPOConfig` of a trainer of `trainer_configs`."""
    module = importlib.import_module(f"trainer_configs.{_MODULES[variant]}")
    return getattr(module, f"nnUNetTrainer_MAPO{variant}").mapo


def build_config(arm: Arm, regime: Regime) -> Any:
    """`MAPOConfig` of an arm.

    Raises:
        UnknownSettingsError: The package knows one of its settings or values not.
    """
    shipped = read_shipped(f"{regime.variant}{arm.variant}")
    known = {each.name for each in fields(shipped)}
    if unknown := sorted(set(arm.settings) - known):
        message = f"MAPOConfig has no {', '.join(unknown)}"
        raise UnknownSettingsError(message)
    config = replace(shipped, **arm.settings)
    try:
        config.validate()
    except ValueError as error:
        raise UnknownSettingsError(str(error)) from error
    return config
