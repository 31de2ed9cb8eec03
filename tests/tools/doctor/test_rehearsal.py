"""What a rehearsal says of the trainer; with a data set: tests/integration/test_doctor_run.py."""

import os
from pathlib import Path

import nnunetv2
import pytest

from nnunetv2_mapo.tools.doctor import rehearse
from nnunetv2_mapo.tools.doctor.checks import NOTE, OK, PROBLEM, Asked, Finding

TRAINER_CONFIGS = Path(__file__).parents[3] / "trainer_configs"


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder of a user's trainers, before the checkout's; nnU-Net has none of MAPO itself."""
    folder = tmp_path / "own trainers"
    folder.mkdir()
    (tmp_path / "nnunetv2" / "training" / "nnUNetTrainer").mkdir(parents=True)
    places = [str(tmp_path / "nnunetv2"), *nnunetv2.__path__]  # nnU-Net searches the first one
    monkeypatch.setattr(nnunetv2, "__path__", places)
    monkeypatch.setenv("nnUNet_extTrainer", f"{folder}{os.pathsep}{TRAINER_CONFIGS}")
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    return folder


def look(trainer):
    """Device, and what is said of the trainer."""
    asked = Asked(None, None, "nnUNetPlans", trainer, 0, device="cpu")
    device, finding = rehearse(asked)
    assert device.level == NOTE
    return finding


def test_a_trainer_is_found_with_its_bases(own):
    text = "from nnunetv2_mapo import nnUNetTrainer_MAPO\n"
    (own / "mine.py").write_text(f"{text}class nnUNetTrainer_Mine(nnUNetTrainer_MAPO): pass\n")
    assert look("nnUNetTrainer_Mine") == Finding(OK, "nnUNetTrainer_Mine(nnUNetTrainer_MAPO)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import unheard_of\n", "ModuleNotFoundError: No module named 'unheard_of'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_broken_module_on_the_way_is_a_problem_with_its_place(own, text, reason):
    (own / "broken.py").write_text(text)
    finding = look("nnUNetTrainer_MAPO")
    assert finding.level == PROBLEM
    assert f"nnUNetv2_train would fail: {reason}" in finding.what
    assert finding.what.endswith(f"\n{own / 'broken.py'}, line 1")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xyz", "There is no trainer xyz."),
        ("nnUNetTrainer_MAP0", "There is no trainer nnUNetTrainer_MAP0. Did you mean nnUNetTr"),
        ("nnUNetTrainerDA55_MAPO", "nnU-Net knows no trainer nnUNetTrainerDA55"),
        ("nnUNetTrainerOther", "must inherit from 'nnUNetTrainer'"),
    ],
)
def test_what_is_no_trainer_is_a_problem(own, name, reason):
    (own / "other.py").write_text("class nnUNetTrainerOther: pass\n")
    finding = look(name)
    assert finding.level == PROBLEM
    assert reason in finding.what
    assert "nnUNet_" not in f"{finding.what}{finding.mend}"  # no variable is to blame


def test_settings_that_are_not_valid_are_a_problem_without_a_data_set(own):
    text = (
        "from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO\n"
        "class nnUNetTrainer_Wrong(nnUNetTrainer_MAPO):\n    mapo = MAPOConfig(tau=2)\n"
    )
    (own / "wrong.py").write_text(text)
    finding = look("nnUNetTrainer_Wrong")
    assert finding.level == PROBLEM
    assert "tau=2 is not valid" in finding.what


def test_a_signature_that_nnunet_cannot_call_is_a_problem_without_a_data_set(own):
    text = (
        "from nnunetv2_mapo import nnUNetTrainer_MAPO\n"
        "class nnUNetTrainer_Wrong(nnUNetTrainer_MAPO):\n"
        "    def __init__(self, *args): super().__init__(*args)\n"
    )
    (own / "wrong.py").write_text(text)
    finding = look("nnUNetTrainer_Wrong")
    assert finding.level == PROBLEM
    assert finding.what.startswith("nnUNetTrainer_Wrong.__init__ has the parameters args, but")
    assert "def __init__(self, plans, configuration, fold, dataset_json, device=" in finding.what
