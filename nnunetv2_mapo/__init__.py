"""MAPO, preference optimisation for every segmentation network of nnU-Net v2."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2_mapo.method.config import MAPOConfig
    from nnunetv2_mapo.method.dropout_sites import find_dropout_sites
    from nnunetv2_mapo.trainer import MAPOTrainer, nnUNetTrainer_MAPO
    from nnunetv2_mapo.zoo.networks import SingleOutputTrainer

__version__ = "0.1.0"
__all__ = [
    "MAPOConfig",
    "MAPOTrainer",
    "SingleOutputTrainer",
    "__version__",
    "find_dropout_sites",
    "nnUNetTrainer_MAPO",
]

_HOME = {
    "MAPOConfig": "nnunetv2_mapo.method.config",
    "MAPOTrainer": "nnunetv2_mapo.trainer",
    "SingleOutputTrainer": "nnunetv2_mapo.zoo.networks",
    "find_dropout_sites": "nnunetv2_mapo.method.dropout_sites",
    "nnUNetTrainer_MAPO": "nnunetv2_mapo.trainer",
}


def __getattr__(name: str) -> Any:
    # Imported on demand: the command line's help must not wait for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
