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
    "_Choices": "mapo_choices",
    "_Choices_NoPreference": "mapo_choices",
}


class UnknownSettingsError(ValueError):
    """The installed package does not know an arm's settings; the message says which."""


@dataclass(frozen=True)
class Arm:
    """MAPO with settings.

    Attributes:
        settings: Of `MAPOConfig`, on top of those that are shipped.
        variant: Of the shipped trainer, such as `"_NoPreference"`.
        asked: Options of `nnUNetv2_mapo choose`, in the regime of choices.
        num_outlines: Images that the expert has outlined instead.
        loss: Of `losses.LOSSES`, on top of the base trainer's.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    asked: tuple[str, ...] = ()
    num_outlines: int = 0
    loss: str = ""


STOCK = "stock"  # the base trainer without MAPO
CONTROL = "control"  # MAPO without preferences; from scratch that is the stock trainer, bit for bit

# The frozen network in each step, as was the default until its margins were stored.
NETWORK = {"reference": "network"}
# Light dropout of training, as the paper has it, and as was the default until it was compared.
DROPOUT = NETWORK | {"warmup_dropout": True, "preference_dropout": "without pair"}
# Dropout of training that drops nothing: how the default was measured before it was one.
DRY = DROPOUT | {
    "rates_2d": tuple(1e-9 * step for step in range(11)),
    "rates_3d": tuple(1e-9 * step for step in range(7)),
}

WRONG = ("--error", "0.1")

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
            "warmup_dropout": True,
            "reference": "network",
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
    "same_masks": Arm({"preference_dropout": "same masks", "reference": "network"}),
    "network": Arm(NETWORK),
    "no_reference": Arm({"reference": "none"}),
    "fixed_rates": Arm({"rates": "fixed"}),
    "fall_005": Arm({"rates_dice_fall": 0.05}),
    "fall_02": Arm({"rates_dice_fall": 0.2}),
    "kappa_2": Arm({"kappa": 2.0}),
    "kappa_1": Arm({"kappa": 1.0}),
    "kappa_4": Arm({"kappa": 4.0}),
    "wrong_too": Arm({"agree": False}),
    "dry": Arm(DRY),
    # dropout in training, each with its control
    "dropout": Arm(DROPOUT),
    "dropout_kappa_2": Arm(DROPOUT | {"kappa": 2.0}),
    "dropout_wrong_too": Arm(DROPOUT | {"agree": False}),
    "dropout_control": Arm(DROPOUT, "_NoPreference"),
    "strong_dropout": Arm(DROPOUT | {"rates_3d": RATES_3D}),
    "control_strong": Arm(DROPOUT | {"rates_3d": RATES_3D}, "_NoPreference"),
    "channel": Arm({"granularity": "channel"}),
    # by the metric that is ranked by; of each a plain loss that claims the same
    "mapo_nsd": Arm({"metric": "nsd"}),
    "mapo_hd95": Arm({"metric": "hd95"}),
    "mapo_lesion_f1": Arm({"metric": "lesion_f1", "part_weight": "part"}),
    "mapo_lesion_f1_voxel": Arm({"metric": "lesion_f1"}),
    "mapo_lesion_dice": Arm({"metric": "lesion_dice", "part_weight": "part"}),
    "mapo_false_volume": Arm({"metric": "false_volume"}),
    "mapo_cldice": Arm({"metric": "cldice"}),
    "mapo_part": Arm({"part_weight": "part"}),
    "loss_blob": Arm(variant="_NoPreference", loss="blob"),
    "loss_cldice": Arm(variant="_NoPreference", loss="cldice"),
    # of choices: what else can be made of them, and an expert who is wrong in 10 % of the answers
    "pseudo_label": Arm({"unlabelled": "pseudo-label"}),
    "chosen_label": Arm({"unlabelled": "chosen"}),
    "rate_03": Arm({"learning_rate_factor": 0.3}),
    "rate_01": Arm({"learning_rate_factor": 0.1}),
    "kappa_half": Arm({"kappa": 0.5}),
    "regions": Arm(asked=("--regions",)),
    "mapo_10": Arm(asked=WRONG),
    "chosen_label_10": Arm({"unlabelled": "chosen"}, asked=WRONG),
    "outlines_10": Arm({"unlabelled": "chosen"}, num_outlines=10),
    "outlines_30": Arm({"unlabelled": "chosen"}, num_outlines=30),
    "regions_10": Arm(asked=("--regions", *WRONG)),
}


_WITH_DROPOUT = ("dropout", "dropout_kappa_2", "dropout_wrong_too", "paper_loss")
_CONTROLS = dict.fromkeys(_WITH_DROPOUT, "dropout_control") | {"strong_dropout": "control_strong"}


def control_of(regime: str, arm: str) -> str:
    """Arm that an arm is held against: the same training without preferences."""
    return CONTROL if regime in ("finetune", "choices") else _CONTROLS.get(arm, STOCK)


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
