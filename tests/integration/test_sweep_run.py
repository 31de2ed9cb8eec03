"""A sweep of real trainings: failed, continued, finished, compared."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunetv2_mapo import rule
from nnunetv2_mapo import trainer as mapo
from nnunetv2_mapo.cli import main
from nnunetv2_mapo.cli.nnunet import CommandError
from nnunetv2_mapo.cli.sweep_run import run_sweep

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
DATASET = "Dataset990_Boxes"
OWN = "nnUNetTrainerTiny_MAPO_Sweep_"
CONTROL, GENTLE, STRONG = f"{OWN}NoPreference", f"{OWN}beta05", f"{OWN}beta2"
FILE: dict[str, Any] = {
    "dataset": "990",
    "configuration": "2d",
    "folds": [1],  # has a single training and a single validation case
    "trainer": "nnUNetTrainerTiny",
    "variant": "tiny",
    "settings": {"beta": [0.5, 2.0]},
    "baselines": [CONTROL],
    "arguments": ["-device", "cpu"],
}


class Trainings:
    """Stands for the child processes, each of which would import nnU-Net anew.

    Attributes:
        commands: Every command, as options of each trainer.
        broken: Trainer that fails.
    """

    def __init__(self) -> None:
        self.commands: dict[str, list[str]] = {}
        self.broken = ""

    def start(self, command: Sequence[str], log: Path) -> int:
        trainer = command[command.index("-tr") + 1]
        self.commands[trainer] = [word for word in command if word.startswith("--")]
        if trainer == self.broken:
            return 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(command))
            patch.setattr(torch, "set_num_threads", lambda _: None)  # nnU-Net takes every core
            try:
                run_training_entry()
            except Exception:  # as a process would fail with any
                log.write_text(traceback.format_exc())
                return 1
        return 0


@pytest.fixture
def sweep(boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File of the sweep; results go to a folder of this test."""
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_extTrainer", os.environ["nnUNet_extTrainer"])
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(mapo, "plot_progress", lambda *_: None)
    file = tmp_path / "betas.json"
    file.write_text(json.dumps(FILE))
    rule._combine.cache_clear()
    return file


def fold_of(sweep: Path, trainer: str) -> Path:
    model = f"{trainer}__nnUNetPlans__2d"
    return sweep.parent / "results" / DATASET / model / "fold_1"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_sweep_survives_a_failure_goes_on_and_compares_what_nnunet_measured(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, trainings = sweep.with_suffix(""), Trainings()
    trainings.broken = STRONG
    with pytest.raises(
        CommandError, match=f"1 of the trainings failed.*\n  {STRONG}, fold 1: exit"
    ):
        run_sweep(sweep, folder, is_run=True, start=trainings.start)
    assert trainings.commands == {CONTROL: [], GENTLE: [], STRONG: []}
    assert f"Not finished in any fold: {STRONG}." in capsys.readouterr().out

    # One training was stopped in its validation, one before its last checkpoint.
    (fold_of(sweep, CONTROL) / "validation" / "summary.json").unlink()
    stopped = fold_of(sweep, GENTLE)
    (stopped / "checkpoint_final.pth").rename(stopped / "checkpoint_latest.pth")
    trainings.broken = ""
    run_sweep(sweep, folder, is_run=True, start=trainings.start)
    assert trainings.commands == {CONTROL: ["--val"], GENTLE: ["--c"], STRONG: []}
    capsys.readouterr()

    trainings.commands = {}
    run_sweep(sweep, folder, is_run=True, start=trainings.start)
    assert trainings.commands == {}
    printed = capsys.readouterr().out
    assert f"3 of 3 trainings are finished already:\n  {CONTROL}, fold 1\n" in printed

    # The table and comparison.json hold the means of nnU-Net's own summaries.
    [dice] = [
        m for m in read(folder / "comparison.json")["metrics"] if "Dice" in str(m["direction"])
    ]
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
    labels = {CONTROL: CONTROL, GENTLE: "beta = 0.5", STRONG: "beta = 2.0"}
    means = {}
    for trainer, label in labels.items():
        summary = read(fold_of(sweep, trainer) / "validation" / "summary.json")
        means[trainer] = summary["foreground_mean"]["Dice"]
        assert dice["summaries"][trainer]["mean"] == pytest.approx(means[trainer])
        assert f"{means[trainer]:.4f}" in rows[label]
    for trainer in (GENTLE, STRONG):
        difference = means[trainer] - means[CONTROL]
        assert dice["differences"][trainer]["mean"] == pytest.approx(difference)
        assert f"{difference:+.4f}" in rows[labels[trainer]]
    assert {path.name for path in folder.iterdir()} >= {"comparison.md", "comparison.html"}
    # Two rounds of one training case with twelve slices: a number of pairs for each.
    pairs = [int(word.strip(",")) for word in rows["beta = 0.5"][-2:]]
    assert all(0 < number <= 12 for number in pairs)

    # Without --run the same table; trainings of the same names with other settings are refused.
    assert main(["sweep", str(sweep)]) == 0
    assert capsys.readouterr().out.endswith(printed.split("\n\n", 1)[1])
    other = sweep.with_name("other.json")
    other.write_text(json.dumps({**FILE, "variant": "steady"}))
    rule._combine.cache_clear()
    assert main(["sweep", str(other)]) == 1
    error = capsys.readouterr().err
    assert "Trainings with other settings have these names" in error
    assert f"{GENTLE}__nnUNetPlans__2d/fold_1: preference_dropout: True then, False now" in error


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"dataset": "989"}, "no data set 989 in"),
        ({"configuration": "3d_lowres"}, "nnUNetPlans has no configuration 3d_lowres"),
        ({"plans": "others"}, "has no plans others"),
        ({"variant": "tinny"}, "variant: nnUNetTrainer_MAPO_tinny asks for the variant tinny"),
        ({"trainer": "nnUNetTrainerTyny"}, "Did you mean nnUNetTrainerTiny"),
        ({"baselines": ["nnUNetTrainerMine"]}, "baselines: nnU-Net finds no trainer"),
        ({"name": "FineTune"}, "name: there is a trainer nnUNetTrainer_MAPO_FineTune already"),
        ({"settings": {"rates_3d": [[0, 0.1]]}}, "rates_3d has no effect in 2d"),
    ],
)
def test_what_the_file_names_must_be_there_before_anything_is_written(
    sweep: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any], message: str
) -> None:
    sweep.write_text(json.dumps({**FILE, **entries}))
    assert main(["sweep", str(sweep), "--run"]) == 1
    error = capsys.readouterr().err
    assert message in error
    # the file's own control is named after its trainer
    assert ("baselines:" in error) == bool({"baselines", "trainer"} & set(entries))
    assert not sweep.with_suffix("").exists()
