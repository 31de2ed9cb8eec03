"""MAPO that starts from the base trainer's finished checkpoint, and its control."""

from dataclasses import replace

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO


class nnUNetTrainer_MAPO_FineTune(nnUNetTrainer_MAPO):
    """A fifth of the base trainer's epochs, at a tenth of its learning rate."""

    # Measured, see docs/how-to/fine-tune.md: the whole learning rate destroys what the base knows,
    # and dropout does not harm a network that has learnt already.
    mapo = MAPOConfig(
        fine_tune=True,
        warmup_dropout=True,
        preference_dropout="without pair",
        num_epochs_factor=0.2,
        learning_rate_factor=0.1,
        warmup_fraction_2d=0.25,
        warmup_fraction_3d=0.25,
    )


class nnUNetTrainer_MAPO_FineTune_NoPreference(nnUNetTrainer_MAPO):
    """The same without preferences: its warm-up for all epochs."""

    mapo = replace(nnUNetTrainer_MAPO_FineTune.mapo, num_rounds=0)
