"""A folder of choices with three images, and a session that asks about them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_mapo.tools.choose.candidates import Differing, find_widest
from nnunetv2_mapo.tools.choose.folder import ChoicesFolder
from nnunetv2_mapo.tools.choose.preparation import Preparation
from nnunetv2_mapo.tools.choose.questions import Asking
from nnunetv2_mapo.tools.choose.server import ChooseServer
from nnunetv2_mapo.tools.choose.session import Session

SHAPE = (3, 8, 10)
# What the server reads of a model: values, no behaviour.
MODEL = SimpleNamespace(
    channel_names=["MRI"],
    dataset_json={"labels": {"background": 0, "box": 1}},
    configuration_manager=SimpleNamespace(spacing=[2.0, 1.0, 0.5]),
    plans_manager=SimpleNamespace(image_reader_writer_class=SimpleITKIO),
)


def draw_candidates(width: int, number: int = 3) -> np.ndarray:
    """Boxes, each one column wider than the one before."""
    candidates = np.zeros((number, *SHAPE), np.int16)
    for place, candidate in enumerate(candidates):
        candidate[1, 2:6, 2 : 2 + width + place] = 1
    return candidates


@pytest.fixture
def folder(tmp_path: Path) -> ChoicesFolder:
    path = tmp_path / "choices"
    (path / "images").mkdir(parents=True)
    made = ChoicesFolder(path)
    for number, width in enumerate((6, 4, 2)):  # the smaller, the larger is what differs
        image = np.random.default_rng(number).normal(size=(1, *SHAPE)).astype(np.float32)
        candidates = draw_candidates(width)
        widest, disagreement = find_widest(candidates)
        found = Differing(candidates, (0.0, 0.1, 0.2), widest, disagreement, 1)
        made.write_image(f"image_{number}", image, found, {"spacing": [1, 1, 1]}, SHAPE)
    return made


@pytest.fixture
def make_session(folder: ChoicesFolder) -> Callable[..., Session]:
    def make(*, regions: bool = False, repeat: float = 0.0) -> Session:
        model: Any = MODEL
        preparation = Preparation(folder, model, {}, 6, 0, torch.device("cpu"), print)
        preparation.start()
        preparation.wait()
        return Session(preparation, Asking(regions, repeat, 0))

    return make


@pytest.fixture
def server(make_session: Callable[..., Session]) -> Iterator[ChooseServer]:
    with ChooseServer(make_session(), 0) as server:
        server.start()
        yield server
        server.shutdown()
