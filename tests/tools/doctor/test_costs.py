"""Threads that slow a training down; the time of mining: tests/integration/test_doctor_run.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunetv2_mapo.tools.doctor import costs
from nnunetv2_mapo.tools.doctor.checks import NOTE, Finding


class Sleeper(nn.Module):
    """Takes so long with one thread, and so long with more."""

    def __init__(self, one_s: float, many_s: float) -> None:
        super().__init__()
        self.one_s, self.many_s = one_s, many_s

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.one_s if torch.get_num_threads() == 1 else self.many_s)
        return images


def find_slow_threads(monkeypatch, one_s: float, many_s: float) -> list[Finding]:
    monkeypatch.setattr(costs.multiprocessing, "cpu_count", lambda: 2)
    trainer = SimpleNamespace(
        network=Sleeper(one_s, many_s),
        num_input_channels=1,
        configuration_manager=SimpleNamespace(patch_size=(8, 8)),
    )
    return list(costs.check_threads(trainer))


@pytest.mark.parametrize(("one_s", "many_s", "is_slowed"), [(0.01, 0.1, True), (0.1, 0.01, False)])
def test_more_threads_that_take_longer_are_noted(monkeypatch, one_s, many_s, is_slowed):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    before = torch.get_num_threads()
    found = find_slow_threads(monkeypatch, one_s, many_s)
    assert [finding.level for finding in found] == [NOTE] * is_slowed
    assert all("nnU-Net computes with 2 threads" in finding.what for finding in found)
    assert torch.get_num_threads() == before


def test_threads_that_wait_as_they_should_are_not_noted(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert not find_slow_threads(monkeypatch, 0.01, 0.1)


def test_a_training_step_with_the_advice_comes_to_its_end(monkeypatch):
    """With fewer threads than it counts on, oneDNN's backward pass of these layers never ends."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    [found] = find_slow_threads(monkeypatch, 0.01, 0.1)
    variable, value = found.mend.split()[0].split("=")
    step = (
        "import torch; torch.set_num_threads(2); layer = torch.nn.Conv2d; "
        "network = torch.nn.Sequential(layer(1, 16, 3, padding=1), layer(16, 16, 3, padding=1)); "
        "network(torch.zeros(4, 1, 64, 64)).sum().backward()"
    )
    environment = {**os.environ, variable: value}
    subprocess.run([sys.executable, "-c", step], env=environment, check=True, timeout=60)
