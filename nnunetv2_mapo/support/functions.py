"""Functions of a user, by their name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

_FOLDERS = "nnUNet_extTrainer"  # of nnU-Net: where it looks for trainers besides its own


def import_function(name: str) -> Callable[..., Any]:
    """Import `"package.module:function"` from the Python path or a folder of `nnUNet_extTrainer`.

    Raises:
        ImportError, AttributeError: There is no such module, or no such function in it.
    """
    module, _, function = name.partition(":")
    folders = filter(None, os.environ.get(_FOLDERS, "").split(os.pathsep))
    with patch.object(sys, "path", [*sys.path, *folders]):
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
