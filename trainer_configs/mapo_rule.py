"""`X_MAPO` for any trainer X, and `X_MAPO_V` for any variant V (PEP 562)."""

from nnunetv2_mapo.rule import find_trainer as __getattr__

__all__ = ["__getattr__"]
