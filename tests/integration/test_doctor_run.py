"""The doctor with everything that it imports, on a data set that nnU-Net has preprocessed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.doctor import probe
from nnunetv2_mapo.doctor.cases import check_cases
from nnunetv2_mapo.doctor.dataset import Asked, Prepared, check_dataset
from nnunetv2_mapo.doctor.finding import NOTE, OK, PROBLEM

TRAINER = "nnUNetTrainerTiny_MAPO_tiny"


@pytest.fixture
def copied(boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set's folder that a test may break, among folders that the environment names."""
    for name in ("raw", "preprocessed", "results"):
        shutil.copytree(boxes / name, tmp_path / name)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path / "preprocessed" / "Dataset990_Boxes"


def ask(configuration: str = "3d_fullres", fold: str = "0") -> Asked:
    return Asked("990", configuration, "nnUNetPlans", TRAINER, fold)


def look(asked: Asked) -> tuple[list[str], str, list[str]]:
    """Levels of the findings, the first problem or note, and the training cases."""
    _, prepared = check_dataset(asked)
    assert isinstance(prepared, Prepared)
    findings, training = check_cases(prepared, asked)
    text = "\n".join(str(finding) for finding in findings if finding.level != OK)
    return [finding.level for finding in findings], text, list(training)


def test_a_sane_environment_is_ready_and_names_the_command(
    boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["doctor", "-d", "990", "-tr", TRAINER])
    out = capsys.readouterr().out
    assert code == 0, out
    ready = out.splitlines()[-1]
    assert ready.startswith(f"Ready: nnUNetv2_train 990 3d_fullres 0 -tr {TRAINER}")
    assert "fold 0: 4 training and 2 validation cases" in out
    assert "preferences of 2 rounds need at most about" in out
    assert f"{TRAINER}(MAPOTrainer, nnUNetTrainerTiny)" in out
    assert not list((boxes / "results").iterdir())


def test_a_trainer_that_ends_python_is_a_problem_and_what_was_found_before_it_stays(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fatal.py").write_text("import os\nos._exit(3)\n")
    earlier = os.environ["nnUNet_extTrainer"]
    monkeypatch.setenv("nnUNet_extTrainer", f"{earlier}{os.pathsep}{tmp_path}")
    *before, last = probe.run_probe(ask()).findings
    assert "import nnunetv2_mapo.trainer" in [finding.what for finding in before]
    assert last[:2] == (PROBLEM, "trainers: Python ended with exit code 3")
    assert "nnUNet_extTrainer" in last.mend


def test_every_fold_that_nnunet_would_train_is_fine(copied: Path) -> None:
    assert look(ask())[0] == [OK]
    assert len(look(ask(fold="all"))[2]) == 6
    levels, text, training = look(ask(fold="7"))
    assert levels == [OK, NOTE]
    assert "the split has 2 folds; nnU-Net draws fold 7 at random" in text
    assert len(training) == 4  # 80 % of 6, rounded down
    (copied / "splits_final.json").unlink()
    levels, _, training = look(ask(fold="4"))
    assert levels == [OK]
    assert len(training) == 5  # the five folds of 6 cases validate on 2, 1, 1, 1, 1


def test_cases_that_are_not_preprocessed_are_made_by_the_command(copied: Path) -> None:
    shutil.rmtree(copied / "nnUNetPlans_2d")
    levels, text, training = look(ask("2d"))
    assert (levels, training) == ([PROBLEM], [])
    assert text.endswith("nnUNetv2_preprocess -d 990 -plans_name nnUNetPlans -c 2d")


def test_a_split_that_does_not_fit_is_a_problem(copied: Path) -> None:
    splits = [{"train": ["case_0", "unknown"], "val": ["case_1"]}]
    (copied / "splits_final.json").write_text(json.dumps(splits))
    levels, text, _ = look(ask())
    assert levels == [PROBLEM]
    assert "['unknown']" in text
    (copied / "splits_final.json").write_text("[")
    levels, text, _ = look(ask())
    assert levels == [PROBLEM]
    assert "splits_final.json cannot be read: JSONDecodeError" in text


def test_a_cascade_without_the_stage_before_is_a_problem_until_it_is_predicted(
    copied: Path,
) -> None:
    plans = json.loads((copied / "nnUNetPlans.json").read_text())
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"]["3d_cascade_fullres"] = cascade
    (copied / "nnUNetPlans.json").write_text(json.dumps(plans))
    levels, text, _ = look(ask("3d_cascade_fullres"))
    assert levels == [OK, PROBLEM]
    assert "lacks predictions of 3d_lowres for 6 cases" in text
    assert f"nnUNetv2_train Dataset990_Boxes 3d_lowres FOLD -tr {TRAINER}" in text
    model = copied.parents[1] / "results" / copied.name / f"{TRAINER}__nnUNetPlans__3d_lowres"
    predicted = model / "predicted_next_stage" / "3d_cascade_fullres"
    predicted.mkdir(parents=True)
    for number in range(6):
        (predicted / f"case_{number}.b2nd").touch()
    assert look(ask("3d_cascade_fullres"))[0] == [OK, OK]
