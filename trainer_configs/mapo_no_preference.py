"""The control: without it, nobody can tell the effect of preferences."""

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO


class nnUNetTrainer_MAPO_NoPreference(nnUNetTrainer_MAPO):
    """The warm-up for all epochs, no preferences: by default that is the base trainer."""

    mapo = MAPOConfig(num_rounds=0)
