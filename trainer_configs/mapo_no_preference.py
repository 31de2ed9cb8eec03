"""The control: without it, nobody can tell the effect of preferences from that of dropout."""

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO


class nnUNetTrainer_MAPO_NoPreference(nnUNetTrainer_MAPO):
    """The warm-up for all epochs: MAPO's dropout, no preferences."""

    mapo = MAPOConfig(num_rounds=0)
