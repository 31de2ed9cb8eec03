from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

from nnunetv2_mapo.support.device import (
    choose_device,
    read_state,
    seeded,
    untouched,
    write_state,
)
from nnunetv2_mapo.support.errors import CommandError

CPU = torch.device("cpu")


def draw() -> list[float]:
    return [random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()]  # noqa: NPY002  # nnU-Net's


def test_seeding_repeats_and_leaves_torchs_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for seed in ("0/1/a", "0/1/b", "0/1/a"):
        with seeded(seed, CPU):
            drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]
    assert torch.equal(torch.rand(3), expected)


def test_every_generator_goes_on_from_a_state_that_was_written_to_a_file():
    np.random.randn()  # noqa: NPY002  # leaves a second normal number behind, part of the state
    state = pickle.dumps(read_state(CPU))
    expected = draw()
    draw()
    write_state(pickle.loads(state), CPU)
    assert draw() == expected


def test_a_state_holds_no_numpy_array_whose_pickle_older_versions_cannot_read():
    assert b"numpy" not in pickle.dumps(read_state(CPU)).replace(b"numpy", b"", 1)


def test_what_is_drawn_in_the_block_is_not_used_up():
    state = read_state(CPU)
    expected = draw()
    write_state(state, CPU)
    with untouched(CPU):
        assert draw() == expected
    assert draw() == expected


def test_the_device_is_a_gpu_if_there_is_one_and_one_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(None).type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(None).type == "cpu"
    with pytest.raises(CommandError, match=r"PyTorch sees no cuda\. There is: cpu, mps\."):
        choose_device("cuda")
