"""The doctor with everything that it imports, on a data set that nnU-Net has preprocessed."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools.doctor import probe
from nnunetv2_mapo.tools.doctor.dataset import Asked, Prepared, check_dataset
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM
from nnunetv2_mapo.tools.doctor.rehearsal import Rehearsal, rehearse
from nnunetv2_mapo.tools.doctor.trainers import find_trainer

TRAINER, FINE_TUNING = "nnUNetTrainerTiny_MAPO_tiny", "nnUNetTrainerTiny_MAPO_tinytune"
CPU = torch.device("cpu")
MODEL = "nnUNetTrainerTiny__nnUNetPlans__3d_fullres"


@pytest.fixture
def copied(boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set's folder that a test may break, among folders that the environment names."""
    for name in ("raw", "preprocessed", "results"):
        shutil.copytree(boxes / name, tmp_path / name)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path / "preprocessed" / "Dataset990_Boxes"


def ask(configuration: str = "3d_fullres", fold: str = "0", trainer: str = TRAINER) -> Asked:
    return Asked("990", configuration, "nnUNetPlans", trainer, fold)


def look(asked: Asked) -> Rehearsal:
    _, prepared = check_dataset(asked)
    assert isinstance(prepared, Prepared)
    return rehearse(find_trainer(asked.trainer).trainer, prepared, asked)


def levels(asked: Asked) -> list[str]:
    return [finding.level for finding in look(asked).findings]


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_sane_environment_is_ready_and_names_the_command_and_nothing_is_left(
    boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list_files(boxes)
    code = main(["doctor", "-d", "990", "-tr", TRAINER, "-device", "cpu"])
    out = capsys.readouterr().out
    assert code == 0, out
    command = f"nnUNetv2_train 990 3d_fullres 0 -tr {TRAINER} -device cpu"
    assert out.splitlines()[-1] == f"Ready: {command}"
    assert "fold 0: 4 training and 2 validation cases" in out
    assert "preferences of 2 rounds need at most about" in out
    assert f"{TRAINER}(MAPOTrainer, nnUNetTrainerTiny)" in out
    assert list_files(boxes) == before


def test_a_trainer_that_ends_python_is_a_problem_and_what_was_found_before_it_stays(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fatal.py").write_text("import os\nos._exit(3)\n")
    earlier = os.environ["nnUNet_extTrainer"]
    monkeypatch.setenv("nnUNet_extTrainer", f"{earlier}{os.pathsep}{tmp_path}")
    *before, last = probe.run_probe(ask(trainer="nnUNetTrainerNowhere")).findings
    assert "import nnunetv2_mapo.trainer" in [finding.what for finding in before]
    assert last[:2] == (PROBLEM, "trainers: Python ended with exit code 3")
    assert "nnUNet_extTrainer" in last.mend


def test_without_a_data_set_a_base_checkpoint_is_looked_for_later(boxes: Path) -> None:
    asked = replace(ask(trainer=FINE_TUNING), dataset=None)
    last = probe.run_probe(asked).findings[-1]
    assert last.level == NOTE
    assert "with -d" in last.what


def test_every_fold_that_nnunet_would_train_is_fine(copied: Path) -> None:
    assert levels(ask()) == [OK]
    assert len(look(ask(fold="all")).training.identifiers) == 6
    findings, training = look(ask(fold="7"))
    assert [finding.level for finding in findings] == [OK, NOTE]
    assert "the split has 2 folds; nnU-Net draws fold 7 at random" in findings[1].what
    assert len(training.identifiers) == 4  # 80 % of 6, rounded down
    (copied / "splits_final.json").unlink()
    before = list_files(copied)
    findings, training = look(ask(fold="4"))
    assert [finding.level for finding in findings] == [OK]
    assert len(training.identifiers) == 5  # five folds of 6 cases validate on 2, 1, 1, 1, 1
    assert list_files(copied) == before


def test_a_trainer_without_mapo_is_begun_too(copied: Path) -> None:
    assert levels(ask(trainer="nnUNetTrainerTiny")) == [OK]
    (copied / "nnUNetPlans_3d_fullres" / "case_5.b2nd").write_bytes(b"damaged")  # for validation
    [problem] = look(ask(trainer="nnUNetTrainerTiny")).findings
    assert problem.level == PROBLEM
    assert problem.what.startswith("nnUNetv2_train would fail: ")
    assert problem.mend == ""


def test_cases_that_are_not_preprocessed_are_made_by_the_command(copied: Path) -> None:
    shutil.rmtree(copied / "nnUNetPlans_2d")
    for trainer in (TRAINER, "nnUNetTrainerTiny"):
        [problem], training = look(ask("2d", trainer=trainer))
        assert (problem.level, training) == (PROBLEM, None)
        assert problem.mend == "nnUNetv2_preprocess -d 990 -plans_name nnUNetPlans -c 2d"


def test_a_split_that_does_not_fit_is_a_problem_and_is_never_to_be_deleted(copied: Path) -> None:
    splits = [{"train": ["case_0", "unknown"], "val": ["case_1"]}]
    for text, reason in ((json.dumps(splits), "['unknown']"), ("[", "JSONDecodeError")):
        (copied / "splits_final.json").write_text(text)
        [problem] = look(ask()).findings
        assert problem.level == PROBLEM
        assert reason in problem.what
        assert problem.mend == ""


def test_too_few_cases_for_a_split_name_the_real_file(copied: Path) -> None:
    (copied / "splits_final.json").unlink()
    for number in (4, 5):
        for path in (copied / "nnUNetPlans_3d_fullres").glob(f"case_{number}*"):
            path.unlink()
    [problem] = look(ask()).findings
    assert problem.level == PROBLEM
    assert f"write your own split to {copied / 'splits_final.json'}" in problem.what
    assert levels(ask(fold="all")) == [OK]


def test_a_cascade_without_the_stage_before_is_a_problem_until_its_fold_is_predicted(
    copied: Path,
) -> None:
    plans = json.loads((copied / "nnUNetPlans.json").read_text())
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"]["3d_cascade_fullres"] = cascade
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres"}
    (copied / "nnUNetPlans.json").write_text(json.dumps(plans))
    asked = ask("3d_cascade_fullres", fold="1")  # trains on case_0, validates case_5
    [problem] = look(asked).findings
    assert problem.level == PROBLEM
    assert "lacks predictions of 3d_lowres for 2 cases" in problem.what
    assert f"nnUNetv2_train Dataset990_Boxes 3d_lowres FOLD -tr {TRAINER}" in problem.mend
    model = copied.parents[1] / "results" / copied.name / f"{TRAINER}__nnUNetPlans__3d_lowres"
    predicted = model / "predicted_next_stage" / "3d_cascade_fullres"
    predicted.mkdir(parents=True)
    for number in (0, 5):
        segmentation = copied / "nnUNetPlans_3d_fullres" / f"case_{number}_seg.b2nd"
        shutil.copy(segmentation, predicted / f"case_{number}.b2nd")
    assert levels(asked) == [OK]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [("MAPOConfig(tau=2)", "tau=2 is not valid: a number in (0, 1]"), ("{'tau': 0.2}", "a MAPOC")],
)
def test_settings_that_are_not_valid_are_a_problem(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, reason: str
) -> None:
    text = (
        "from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO\n"
        f"class nnUNetTrainer_MAPO_wrong(nnUNetTrainer_MAPO):\n    mapo = {settings}\n"
    )
    (tmp_path / "wrong.py").write_text(text)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    [problem] = look(ask(trainer="nnUNetTrainer_MAPO_wrong")).findings
    assert problem.level == PROBLEM
    assert reason in problem.what


def test_a_fine_tuning_is_ready_as_soon_as_its_base_is_there(
    copied: Path,
) -> None:
    from nnunetv2.run.run_training import get_trainer_from_args

    asked = ask(trainer=FINE_TUNING)
    [problem] = look(asked).findings
    assert problem.level == PROBLEM
    command = "nnUNetv2_train Dataset990_Boxes 3d_fullres 0 -tr nnUNetTrainerTiny -p nnUNetPlans"
    assert command in problem.what
    base = get_trainer_from_args("990", "3d_fullres", 0, "nnUNetTrainerTiny", device=CPU)
    base.initialize()
    base.save_checkpoint(str(Path(base.output_folder, "checkpoint_final.pth")))
    fine_tunes, fold = look(asked).findings
    assert fine_tunes.what.endswith(f"{MODEL}/fold_0/checkpoint_final.pth")
    assert (fine_tunes.level, fold.level) == (OK, OK)
