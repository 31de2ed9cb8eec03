"""Trainers of the integration tests, found through `nnUNet_extTrainer`."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO


class nnUNetTrainerTiny(nnUNetTrainer):
    """Six epochs of three steps."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's own signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 6
        self.num_iterations_per_epoch = 3
        self.num_val_iterations_per_epoch = 1


class nnUNetTrainerOwnSplit(nnUNetTrainerTiny):
    """Every other case, by its own file beside the plans; nnU-Net's split is never asked for."""

    def do_split(self) -> tuple[list[str], list[str]]:
        plans = Path(self.preprocessed_dataset_folder_base, "nnUNetPlans.json")
        assert plans.is_file()  # where another file of a split would lie
        available = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        return sorted(available)[1::2], sorted(available)[::2]


class nnUNetTrainerSeeded(nnUNetTrainerTiny):
    """The same numbers each time it starts anew."""

    def initialize(self) -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  # nnU-Net draws from it
        torch.manual_seed(0)
        super().initialize()


RATES = (0.0, 0.2, 0.5)
TINY = {
    "num_rounds": 2,
    "rates": "fixed",
    "rates_2d": RATES,
    "rates_3d": RATES,
    "start_from": "last",
    "tau": 1e-4,
    "warmup_dropout": True,  # so that all there is to dropout is tried
    "preference_dropout": "without pair",
}


class nnUNetTrainer_MAPO_tiny(nnUNetTrainer_MAPO):
    """A gap that even an untrained network's candidates have."""

    mapo = MAPOConfig(**TINY)


class nnUNetTrainer_MAPO_tinybeta(nnUNetTrainer_MAPO):
    """The same with another setting."""

    mapo = MAPOConfig(**TINY, beta=2.0)


class nnUNetTrainer_MAPO_steady(nnUNetTrainer_MAPO):
    """No dropout in the preference stage: a step is a function of its batch."""

    mapo = MAPOConfig(**TINY | {"preference_dropout": "off"})


class nnUNetTrainer_MAPO_nopairs(nnUNetTrainer_MAPO):
    """A gap that no two candidates have."""

    mapo = MAPOConfig(**TINY | {"tau": 1.0}, pair="case", agree=False)


class nnUNetTrainer_MAPO_tinyaverage(nnUNetTrainer_MAPO):
    """What the ranks of a distributed training have to agree on besides the weights."""

    mapo = MAPOConfig(
        **TINY,
        pair="case",
        agree=False,
        tau_quantile=0.5,
        selection_unit_3d="slice",
        reference="network",
        reference_update="average",
        reference_decay=0.5,
        best_by="metric",
    )


class nnUNetTrainer_MAPO_tinytune(nnUNetTrainer_MAPO):
    """Half the epochs, from the base trainer's finished checkpoint."""

    mapo = MAPOConfig(**TINY, fine_tune=True, num_epochs_factor=0.5, learning_rate_factor=0.1)


class nnUNetTrainer_MAPO_tinyrates(nnUNetTrainer_MAPO):
    """Rates that each round finds."""

    mapo = MAPOConfig(**{**TINY, "rates": "auto"})


CHOOSING = MAPOConfig(
    unlabelled="preferences", reference="network", warmup_epochs=2, num_rounds=1, start_from="last"
)


class nnUNetTrainer_MAPO_tinychoices(nnUNetTrainer_MAPO):
    """From scratch: the warm-up, then choices."""

    mapo = CHOOSING


class nnUNetTrainer_MAPO_tinychosen(nnUNetTrainer_MAPO):
    """What was chosen is a label."""

    mapo = replace(CHOOSING, unlabelled="chosen")


class nnUNetTrainer_MAPO_tinypseudo(nnUNetTrainer_MAPO):
    """The plain prediction is a label."""

    mapo = replace(CHOOSING, unlabelled="pseudo-label")
