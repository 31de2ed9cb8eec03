"""MAPO with its default settings."""

from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO

__all__ = ["nnUNetTrainer_MAPO"]
