"""What many tests need."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from unets import make_unet

torch.set_num_threads(1)  # networks this small lose more to further threads than they gain


@pytest.fixture(scope="session")
def make_network() -> Callable[..., nn.Module]:
    return make_unet


class Planted:
    """Makes a folder if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path / "trace")
