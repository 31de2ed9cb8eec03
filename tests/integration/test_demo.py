"""The README's main command, made small."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools import demo


def test_the_demo_trains_both_and_ends_with_the_verdict_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short: dict[str, Any] = {"num_epochs": 4, "num_iterations_per_epoch": 8}
    trainers = demo.TRAINERS
    for name, value in short.items():
        trainers, num_found = re.subn(rf"self.{name} = \d+", f"self.{name} = {value}", trainers)
        assert num_found == 1
    monkeypatch.setattr(demo, "TRAINERS", trainers)
    # more cases than a round that is over keeps
    monkeypatch.setattr(demo, "NUM_TRAINING", 8)
    monkeypatch.setattr(demo, "NUM_VALIDATION", 6)
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    assert f"minus {demo.CONTROL}" in printed
    assert "pairs per round" in printed
    assert len(json.loads((tmp_path / "demo" / "demo.json").read_text())["rounds"]) == 2
    report = next((tmp_path / "demo" / "nnUNet_results").rglob("report.html"))
    assert str(report) in printed
    assert "<h3>Round" in report.read_text()
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 1
    assert "Delete that demo with --overwrite" in capsys.readouterr().err
