"""The doctor with everything that it imports, on a data set that nnU-Net has preprocessed."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools.doctor import rehearse
from nnunetv2_mapo.tools.doctor.checks import NOTE, OK, PROBLEM, Asked, Finding, find_dataset

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


def ask(configuration: str = "3d_fullres", fold: int | str = 0, trainer: str = TRAINER) -> Asked:
    return Asked("990", configuration, "nnUNetPlans", trainer, fold, device="cpu")


def look(asked: Asked) -> list[Finding]:
    """What is said of the trainer and of what comes after it."""
    device, *findings = rehearse(find_dataset(asked))
    assert device.level == NOTE  # the CPU
    return findings


def look_at_problem(asked: Asked) -> Finding:
    *before, problem = look(asked)
    assert [finding.level for finding in before] == [OK] * len(before)
    assert problem.level == PROBLEM
    return problem


def look_at_fold(asked: Asked) -> str:
    """What is said of the fold, after the data set, its plans and the configuration."""
    trainer, fold, disk, *_ = look(asked)  # what it costs comes last
    assert (trainer.level, fold.level, disk.level) == (OK, OK, OK)
    return fold.what.removeprefix("Dataset990_Boxes, nnUNetPlans, ").split(", ", 1)[1]


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_sane_environment_is_ready_and_names_the_command_and_nothing_is_left(
    boxes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = list_files(boxes)
    code = main(["doctor", "-d", "990", "-tr", TRAINER, "-device", "cpu"])
    out = capfd.readouterr().out
    assert code == 0, out
    command = f"nnUNetv2_train Dataset990_Boxes 3d_fullres 0 -tr {TRAINER} -device cpu"
    assert out.splitlines()[-1] == f"Ready: {command}"
    said = " ".join(out.split())
    assert "fold 0: 4 training and 2 validation cases; a training begins" in said
    assert "checkpoints and preferences usually need less than" in said
    assert re.search(r"mining takes about [\d.]+ s a case \(case_\d, untrained\)", said)
    assert "about 1.02 times the stock trainer's, peak memory 1.04 times" in said
    assert f"{TRAINER}(MAPOTrainer, nnUNetTrainerTiny)" in out
    assert list_files(boxes) == before


def test_a_problem_of_the_training_is_printed_and_the_exit_code_is_1(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "nnUNetPlans_2d")
    assert main(["doctor", "-d", "990", "-c", "2d", "-tr", TRAINER, "-device", "cpu"]) == 1
    captured = capfd.readouterr()
    assert "PROBLEM  Dataset990_Boxes is not preprocessed for 2d" in captured.out
    assert "nnUNetv2_mapo: error: a training cannot start" in captured.err
    assert "Ready" not in captured.out


def test_without_a_data_set_a_base_checkpoint_is_not_looked_for(boxes: Path) -> None:
    device, trainer = rehearse(replace(ask(trainer=FINE_TUNING), dataset=None))
    assert (device.level, trainer.level) == (NOTE, OK)


def test_every_fold_that_nnunet_would_train_is_fine(copied: Path) -> None:
    assert look_at_fold(ask()).startswith("fold 0: 4 training and 2 validation cases")
    assert look_at_fold(ask(fold="all")).startswith("fold all: 6 training")
    # a fold that is not in the split: 80 % of 6, rounded down
    assert look_at_fold(ask(fold=7)).startswith("fold 7: 4 training and 2 validation cases")
    (copied / "splits_final.json").unlink()
    before = list_files(copied)
    # five folds of 6 cases validate on 2, 1, 1, 1, 1
    assert look_at_fold(ask(fold=4)).startswith("fold 4: 5 training and 1 validation cases")
    assert list_files(copied) == before


def test_a_trainer_without_mapo_is_begun_too(copied: Path) -> None:
    look_at_fold(ask(trainer="nnUNetTrainerTiny"))
    (copied / "nnUNetPlans_3d_fullres" / "case_5.b2nd").write_bytes(b"damaged")  # for validation
    problem = look_at_problem(ask(trainer="nnUNetTrainerTiny"))
    assert problem.what.startswith("nnUNetv2_train would fail: ")
    assert problem.mend == ""


def test_cases_that_are_not_preprocessed_are_made_by_the_command(copied: Path) -> None:
    shutil.rmtree(copied / "nnUNetPlans_2d")
    for trainer in (TRAINER, "nnUNetTrainerTiny"):
        problem = look_at_problem(ask("2d", trainer=trainer))
        assert (
            "Run nnUNetv2_preprocess -d 990 -c 2d with the plans of this training" in problem.what
        )
        assert "variable" not in problem.what  # those were found to be right


def test_a_split_that_does_not_fit_is_a_problem_and_is_never_to_be_deleted(copied: Path) -> None:
    splits = [{"train": ["case_0", "unknown"], "val": ["case_1"]}]
    for text, reason in ((json.dumps(splits), "['unknown']"), ("[", "JSONDecodeError")):
        (copied / "splits_final.json").write_text(text)
        problem = look_at_problem(ask())
        assert reason in problem.what
        assert problem.mend == ""


def test_too_few_cases_for_a_split_name_the_real_file(copied: Path) -> None:
    (copied / "splits_final.json").unlink()
    for number in (4, 5):
        for path in (copied / "nnUNetPlans_3d_fullres").glob(f"case_{number}*"):
            path.unlink()
    problem = look_at_problem(ask())
    assert f"write your own split to {copied / 'splits_final.json'}" in problem.what
    look_at_fold(ask(fold="all"))


def test_too_many_regions_are_a_problem_with_what_to_do(copied: Path) -> None:
    description = json.loads((copied / "dataset.json").read_text())
    regions = {f"region {number}": [1, 2] for number in range(16)}
    description["labels"] = {"background": 0, "all": [1, 2], **regions}
    description["labels"]["region 0"] = [1]
    description["regions_class_order"] = list(range(1, 18))
    (copied / "dataset.json").write_text(json.dumps(description))
    problem = look_at_problem(ask())
    assert problem.what.startswith("17 regions, but at most 15 are valid")
    assert "Then plan and preprocess again." in problem.what


def test_a_split_file_of_the_trainers_own_is_read_where_it_lies(copied: Path) -> None:
    (copied / "splits_final.json").unlink()  # nnU-Net would write one, to a scratch folder
    before = list_files(copied)
    trainer = look(ask(trainer="nnUNetTrainerOwnSplit"))[1]
    assert "fold 0: 3 training and 3 validation cases; a training begins" in trainer.what
    assert list_files(copied) == before


def test_a_cascade_without_the_stage_before_is_a_problem_until_its_fold_is_predicted(
    copied: Path,
) -> None:
    plans = json.loads((copied / "nnUNetPlans.json").read_text())
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"]["3d_cascade_fullres"] = cascade
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres"}
    (copied / "nnUNetPlans.json").write_text(json.dumps(plans))
    asked = ask("3d_cascade_fullres", fold=1)  # trains on case_0, validates case_5
    model = copied.parents[1] / "results" / copied.name / f"{TRAINER}__nnUNetPlans__3d_lowres"
    predicted = model / "predicted_next_stage" / "3d_cascade_fullres"
    assert str(predicted / "case_0.b2nd") in look_at_problem(asked).what
    predicted.mkdir(parents=True)
    dataset = nnUNetDatasetBlosc2(str(copied / "nnUNetPlans_3d_fullres"))
    for case in ("case_0", "case_5"):
        _, segmentation, *_ = dataset.load_case(case)
        nnUNetDatasetBlosc2.save_seg(segmentation[0], str(predicted / case))
    look_at_fold(asked)


def test_a_trainer_that_would_fail_in_the_preference_stage_is_a_problem(copied: Path) -> None:
    problem = look_at_problem(ask(trainer="ForeignNoLoss_MAPO_tiny"))
    assert "does not call self.loss" in problem.what


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
    assert reason in look_at_problem(ask(trainer="nnUNetTrainer_MAPO_wrong")).what


def test_a_fine_tuning_is_ready_as_soon_as_its_base_is_there(
    copied: Path,
) -> None:
    from nnunetv2.run.run_training import get_trainer_from_args

    asked = ask(trainer=FINE_TUNING)
    command = "nnUNetv2_train Dataset990_Boxes 3d_fullres 0 -tr nnUNetTrainerTiny -p nnUNetPlans"
    assert command in look_at_problem(asked).what
    base = get_trainer_from_args("990", "3d_fullres", 0, "nnUNetTrainerTiny", device=CPU)
    base.initialize()
    base.save_checkpoint(str(Path(base.output_folder, "checkpoint_final.pth")))
    _, fine_tunes, fold, disk, *_ = look(asked)
    assert fine_tunes.what.endswith(f"{MODEL}/fold_0/checkpoint_final.pth")
    assert (fine_tunes.level, fold.level, disk.level) == (OK, OK, OK)


def test_a_fold_that_was_trained_is_a_note(copied: Path) -> None:
    fold = (
        copied.parents[1] / "results" / copied.name / f"{TRAINER}__nnUNetPlans__3d_fullres/fold_0"
    )
    fold.mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    _, trained, *_ = look(ask())
    assert (trained.level, trained.what.split(" holds")[0]) == (NOTE, str(fold))
