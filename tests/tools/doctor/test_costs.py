"""Threads that slow a training down; the time of mining: tests/integration/test_doctor_run.py."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunetv2_mapo.tools.doctor import costs
from nnunetv2_mapo.tools.doctor.checks import NOTE


class Sleeper(nn.Module):
    """Takes so long with one thread, and so long with more."""

    def __init__(self, one_s: float, many_s: float) -> None:
        super().__init__()
        self.one_s, self.many_s = one_s, many_s

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.one_s if torch.get_num_threads() == 1 else self.many_s)
        return images


@pytest.mark.parametrize(("one_s", "many_s", "is_slowed"), [(0.01, 0.1, True), (0.1, 0.01, False)])
def test_more_threads_that_take_longer_are_noted(monkeypatch, one_s, many_s, is_slowed):
    monkeypatch.setattr(costs.multiprocessing, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    trainer = SimpleNamespace(
        network=Sleeper(one_s, many_s),
        num_input_channels=1,
        configuration_manager=SimpleNamespace(patch_size=(8, 8)),
    )
    found = list(costs.check_threads(trainer))
    assert [finding.level for finding in found] == [NOTE] * is_slowed
    assert all("nnU-Net computes with 2 threads" in finding.what for finding in found)
    assert torch.get_num_threads() == before
