"""The folder of a sweep: what is refused so that no two trainings are mixed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.cli.nnunet import CommandError
from nnunetv2_mapo.cli.sweep_folder import SweepFolder, name_trainer_folders
from nnunetv2_mapo.config import MAPOConfig
from nnunetv2_mapo.sweep import make_sweep
from nnunetv2_mapo.sweep_file import read_entries

FILE: dict[str, Any] = {
    "dataset": "4",
    "configuration": "3d_fullres",
    "folds": [0],
    "settings": {"tau": [0.05, 0.2], "rates_3d": [[0, 0.1], [0, 0.2]]},
}


def write(folder: SweepFolder, start: MAPOConfig | None = None, **entries: Any) -> None:
    sweep = make_sweep(read_entries({**FILE, **entries}), start or MAPOConfig())
    folder.write(sweep, "Dataset004_H")


def content(folder: SweepFolder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.root.iterdir() if path.is_file()}


def test_a_folder_holds_trainers_commands_and_a_record(tmp_path):
    folder = SweepFolder(tmp_path / "new" / "sweep")
    write(folder)
    assert set(content(folder)) == {"sweep_trainers.py", "commands.sh", "sweep.json"}
    assert json.loads(folder.record.read_text())["dataset"] == "Dataset004_H"
    before = content(folder)
    write(folder)
    assert content(folder) == before


def test_values_folds_and_baselines_can_be_added_and_taken_away(tmp_path):
    folder = SweepFolder(tmp_path)
    write(folder)
    rates = FILE["settings"]["rates_3d"]
    settings = {"tau": [0.4, 0.2], "rates_3d": [*rates, [0, 0.3]]}
    write(folder, settings=settings, folds=[1, 0], baselines=["nnUNetTrainer"])
    assert "Sweep_tau04" in folder.trainers.read_text()
    assert "Sweep_tau005" not in folder.trainers.read_text()


@pytest.mark.parametrize(
    ("entries", "difference"),
    [
        ({"configuration": "2d"}, "configuration: 3d_fullres there, 2d in the file"),
        ({"plans": "small"}, "plans: nnUNetPlans there, small in the file"),
        ({"arguments": ["--npz"]}, r"arguments: \[\] there, \['--npz'\] in the file"),
        (  # rates are named by their place
            {"settings": {"rates_3d": [[0, 0.2], [0, 0.1]]}},
            r"Sweep_rates_3d_1: rates_3d = \[0, 0.1\] there, \[0, 0.2\] in the file",
        ),
        ({"variant": "FineTune"}, "Sweep_tau005: fine_tune = False there, True in the file"),
    ],
)
def test_other_trainings_under_the_same_names_are_refused(tmp_path, entries, difference):
    folder = SweepFolder(tmp_path)
    write(folder)
    before = content(folder)
    start = MAPOConfig(fine_tune="variant" in entries)
    with pytest.raises(CommandError, match=f"holds another sweep:\n  .*{difference}"):
        write(folder, start, **entries)
    assert content(folder) == before


@pytest.mark.parametrize("name", ["thesis.tex", "sweep.json"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("[1, 2]")
    with pytest.raises(CommandError, match="is not empty and no folder of a sweep"):
        write(SweepFolder(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "sweep"):
        with pytest.raises(CommandError, match="Name another"):
            write(SweepFolder(path))


def test_a_sweeps_trainers_are_found_before_those_of_the_user(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["/mine", "/sweep"]))
    name_trainer_folders(["/sweep", "/trainers"])
    assert os.environ["nnUNet_extTrainer"].split(os.pathsep) == ["/sweep", "/trainers", "/mine"]


def test_a_file_that_is_no_sweep_is_refused_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "")
    bad = {
        "missing.json": (None, "cannot be read: No such file"),
        "text.json": ("tau = 0.1", "is not JSON: Expecting value: line 1 column 1"),
        "empty.json": ("{}", "is not a valid sweep:\n  dataset is missing"),
    }
    for name, (text, message) in bad.items():
        file = tmp_path / name
        if text is not None:
            Path(file).write_text(text)
        assert main(["sweep", str(file)]) == 1
        assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
