"""MAPO with the settings that were measured to work best."""

from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO

__all__ = ["nnUNetTrainer_MAPO"]
