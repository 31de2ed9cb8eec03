import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools import doctor
from nnunetv2_mapo.tools.doctor.checks import (
    NOTE,
    OK,
    PROBLEM,
    Asked,
    Finding,
    Problem,
    check_folder,
    find_dataset,
)
from nnunetv2_mapo.tools.doctor.rehearsal import check_disk

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ASKED = Asked("7", None, "nnUNetPlans", "nnUNetTrainer_MAPO", 0)
PLANS = {"2d": {}, "3d_lowres": {}, "3d_fullres": {}, "3d_cascade_fullres": {}}


@pytest.fixture(autouse=True)
def nnunet(monkeypatch, tmp_path):
    """Folder with nnU-Net's three folders, which the environment names."""
    for variable in VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def planned(nnunet):
    """A data set with plans."""
    folder = nnunet / "nnUNet_preprocessed" / "Dataset007_Sample"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": PLANS}))
    return folder


# Findings -----------------------------------------------------------------------------------------


def test_a_finding_is_a_line_with_the_mending_command_below():
    assert str(Finding(OK, "fine")) == "ok       fine"
    assert (
        str(Finding(PROBLEM, "bad\nvery", "mend")) == "PROBLEM  bad\n         very\n           mend"
    )


def test_a_long_finding_is_broken_below_its_beginning_and_its_command_is_not():
    command = "nnUNetv2_train " + "x" * 200
    first, second, mend = str(Finding(OK, "word " * 30, command)).splitlines()
    assert len(first) <= 100
    assert second.startswith(" " * 9 + "word")
    assert mend.strip() == command


# The machine --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_is_not_set_is_a_problem_that_names_the_export(variable, monkeypatch):
    monkeypatch.delenv(variable)
    finding = check_folder(variable)
    assert (finding.level, finding.what) == (PROBLEM, f"{variable} is not set")
    assert finding.mend.startswith(f"export {variable}=")
    assert check_folder(variable, is_needed=False).level == NOTE


@pytest.mark.skipif(os.name == "nt", reason="commands of a POSIX shell")
def test_a_folder_that_does_not_exist_is_made_by_the_command(nnunet, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(nnunet / "not yet" / "there"))
    finding = check_folder("nnUNet_results")
    assert finding.level == PROBLEM
    subprocess.run(shlex.split(finding.mend.split("  (")[0]), check=True)
    assert check_folder("nnUNet_results").level == OK


def test_a_file_in_place_of_a_folder_is_a_problem(nnunet, monkeypatch):
    (nnunet / "file").touch()
    monkeypatch.setenv("nnUNet_results", str(nnunet / "file"))
    assert check_folder("nnUNet_results").level == PROBLEM


def test_results_must_be_writable(nnunet, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root writes anywhere
    finding = check_folder("nnUNet_results")
    assert (finding.level, finding.what) == (
        PROBLEM,
        f"nnUNet_results={nnunet / 'nnUNet_results'} cannot be written to",
    )
    assert check_folder("nnUNet_preprocessed").level == OK  # it may be shared by many


@pytest.mark.parametrize(("num_rounds", "needed"), [(2, 15_441_864), (0, 5000)])
def test_disk_grows_with_network_segmentations_and_rounds(num_rounds, needed, nnunet, monkeypatch):
    # 10 networks of 500 bytes; 2 rounds, each of 7 * 1_100_000 and 2 * 9216 for two cases
    sizes = {"a": 100_000, "b": 1_000_000, "validation": 9_000_000}
    for case, num_bytes in sizes.items():
        (nnunet / f"{case}_seg.b2nd").write_bytes(bytes(num_bytes))
    for free, level in ((needed + 1, OK), (needed - 1, PROBLEM)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        finding = check_disk(nnunet, ["a", "b"], num_rounds, network_bytes=500)
        assert finding.level == level
        assert f"less than {needed / 1e9:.2f} GB" in finding.what
        assert bool(finding.mend) == (level == PROBLEM)


# Data set -----------------------------------------------------------------------------------------


def find_problem(asked):
    with pytest.raises(Problem) as raised:
        find_dataset(asked)
    return Finding(PROBLEM, *raised.value.args)


def test_a_planned_data_set_is_found_by_number_and_by_name(planned):
    for dataset in ("7", "007", "Dataset007_Sample"):
        found = find_dataset(replace(ASKED, dataset=dataset))
        assert (found.folder, found.configuration) == (planned, "3d_fullres")


def test_without_3d_fullres_the_default_is_2d(planned):
    (planned / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": {}}}))
    assert find_dataset(ASKED).configuration == "2d"


@pytest.mark.parametrize("dataset", ["8", "Dataset008_Other", "Sample", "-1"])
def test_a_data_set_that_is_nowhere_is_a_problem_that_lists_the_others(dataset, planned):
    assert "Dataset007_Sample" in find_problem(replace(ASKED, dataset=dataset)).mend


def test_two_data_sets_of_one_number_are_a_problem(planned, nnunet):
    (nnunet / "nnUNet_raw" / "Dataset007_Twin").mkdir()
    assert "More than one dataset" in find_problem(ASKED).what


def test_a_raw_data_set_is_planned_by_the_command(nnunet):
    (nnunet / "nnUNet_raw" / "Dataset007_Sample").mkdir()
    command = find_problem(ASKED).mend.splitlines()[0]
    assert command == "nnUNetv2_plan_and_preprocess -d 007 --verify_dataset_integrity"
    large = find_problem(replace(ASKED, plans="nnUNetResEncUNetLPlans"))
    assert large.mend.splitlines()[0] == f"{command} -pl nnUNetPlannerResEncL"


def test_missing_or_damaged_plans_are_named(planned):
    path = planned / "nnUNetPlans.json"
    path.write_text("{")
    assert f"{path} cannot be read (JSONDecodeError)" in find_problem(ASKED).what
    path.unlink()
    assert f"{path} cannot be read (FileNotFoundError)" in find_problem(ASKED).what


def test_other_plans_and_configurations_are_listed(planned):
    assert "with -p, other plans: nnUNetPlans" in find_problem(replace(ASKED, plans="mine")).mend
    problem = find_problem(replace(ASKED, configuration="4d"))
    assert problem.mend.endswith("-c: 2d, 3d_lowres, 3d_fullres, 3d_cascade_fullres")


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def rehearsed(monkeypatch):
    """What was to be rehearsed, without a rehearsal."""
    asked = []
    monkeypatch.setattr(doctor, "rehearse", lambda each: asked.append(each) or [])
    return asked


def test_without_a_problem_the_training_as_nnunet_finds_it_is_rehearsed(rehearsed, planned, capsys):
    assert main(["doctor", "-d", "7", "-f", "all", "-device", "cpu"]) == 0
    name, configuration = "Dataset007_Sample", "3d_fullres"
    assert rehearsed == [
        replace(ASKED, dataset=name, configuration=configuration, fold="all", device="cpu")
    ]
    command = "nnUNetv2_train Dataset007_Sample 3d_fullres all -tr nnUNetTrainer_MAPO -device cpu"
    versions, *folders, _, ready = capsys.readouterr().out.splitlines()
    for name in ("ok       Python 3.", "nnunetv2-mapo ", "nnunetv2 2.", "torch 2."):
        assert name in versions
    begun = [line.split("=")[0] for line in folders if line[0] != " "]  # a long path is broken
    assert begun == [f"ok       {name}" for name in VARIABLES]
    assert ready == f"Ready: {command}"


def test_the_command_that_trains_says_what_is_not_nnunet_s_default():
    assert ASKED.say_train("cuda") == "nnUNetv2_train 7 CONFIGURATION 0 -tr nnUNetTrainer_MAPO"
    asked = replace(ASKED, configuration="2d", plans="mine", fold="all")
    command = "nnUNetv2_train 7 2d all -tr nnUNetTrainer_MAPO -p mine -device cpu"
    assert asked.say_train("cpu") == command


def test_exit_code_is_1_at_a_problem_and_pytorch_is_not_imported(
    rehearsed, planned, monkeypatch, capsys
):
    assert main(["doctor", "-d", "8"]) == 1
    assert "PROBLEM  -d 8: " in capsys.readouterr().out
    monkeypatch.delenv("nnUNet_results")
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main(["doctor", "-d", "8"]) == 1
    captured = capsys.readouterr()
    assert "export nnUNet_results=" in captured.out
    assert "export nnUNet_preprocessed=" in captured.out
    assert captured.err.startswith("nnUNetv2_mapo: error: a training cannot start: ")
    assert rehearsed == []


def test_raw_data_is_not_needed_for_a_data_set_that_is_planned(rehearsed, planned, nnunet):
    shutil.rmtree(nnunet / "nnUNet_raw")
    assert main(["doctor", "-d", "7"]) == 0
    assert main(["doctor"]) == 1


def test_a_broken_import_is_one_problem_with_its_error(monkeypatch, tmp_path):
    file = tmp_path / "torch.py"
    file.write_text("raise OSError('libcudart.so')\n")
    places = os.pathsep.join([str(tmp_path), *sys.path])
    code = "from nnunetv2_mapo.cli import main; raise SystemExit(main(['doctor']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    what = "PROBLEM nnUNetv2_train would fail: OSError: libcudart.so"
    assert f"{what} {file}, line 1" in " ".join(done.stdout.split())
    assert done.returncode == 1
