"""MAPO that ranks by the metric that a challenge ranks by; the control is the base trainer."""

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO


class nnUNetTrainer_MAPO_NSD(nnUNetTrainer_MAPO):
    """Normalised surface Dice within 1 mm."""

    mapo = MAPOConfig(metric="nsd")


class nnUNetTrainer_MAPO_HD95(nnUNetTrainer_MAPO):
    """95th percentile of the Hausdorff distance."""

    mapo = MAPOConfig(metric="hd95")


class nnUNetTrainer_MAPO_ASD(nnUNetTrainer_MAPO):
    """Average symmetric surface distance."""

    mapo = MAPOConfig(metric="asd")


class nnUNetTrainer_MAPO_LesionF1(nnUNetTrainer_MAPO):
    """F1 of lesions, each of which pulls alike however small it is."""

    mapo = MAPOConfig(metric="lesion_f1", part_weight="part")


class nnUNetTrainer_MAPO_LesionDice(nnUNetTrainer_MAPO):
    """Mean Dice of lesions, each of which pulls alike however small it is."""

    mapo = MAPOConfig(metric="lesion_dice", part_weight="part")


class nnUNetTrainer_MAPO_clDice(nnUNetTrainer_MAPO):
    """Centreline Dice, of vessels and other tubes."""

    mapo = MAPOConfig(metric="cldice")


class nnUNetTrainer_MAPO_FalseVolume(nnUNetTrainer_MAPO):
    """Volume of false and of missed lesions."""

    mapo = MAPOConfig(metric="false_volume")
