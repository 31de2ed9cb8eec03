"""MAPO that learns from experts' choices on images that nobody has segmented, and its controls."""

from dataclasses import replace

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO


class nnUNetTrainer_MAPO_Choices(nnUNetTrainer_MAPO):
    """Starts from the model that was asked about; half of each batch are unlabelled images."""

    # Measured on seed 3 of the study: a smaller learning rate or κ gains less.
    mapo = MAPOConfig(
        unlabelled="preferences",
        reference="network",
        kappa=2.0,
        fine_tune=True,
        num_epochs_factor=0.2,
        warmup_epochs=1,
        num_rounds=1,
        start_from="last",
    )


class nnUNetTrainer_MAPO_Choices_NoPreference(nnUNetTrainer_MAPO):
    """The control: the same without unlabelled images."""

    mapo = replace(nnUNetTrainer_MAPO_Choices.mapo, num_rounds=0)


class nnUNetTrainer_MAPO_Choices_PseudoLabels(nnUNetTrainer_MAPO):
    """The control without an expert: the model's plain prediction of each image is its label."""

    mapo = replace(nnUNetTrainer_MAPO_Choices.mapo, unlabelled="pseudo-label")


class nnUNetTrainer_MAPO_Choices_ChosenAsLabel(nnUNetTrainer_MAPO):
    """The control without rejected candidates: what was chosen is the label."""

    mapo = replace(nnUNetTrainer_MAPO_Choices.mapo, unlabelled="chosen")
