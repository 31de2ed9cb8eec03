import errno
import json
import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools.doctor import machine
from nnunetv2_mapo.tools.doctor import run as doctor_run
from nnunetv2_mapo.tools.doctor.dataset import Asked, describe_dataset, find_dataset
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding, Problem
from nnunetv2_mapo.tools.doctor.machine import (
    check_disk,
    check_folder,
    check_writable,
    describe_versions,
    estimate_disk,
)

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ASKED = Asked("7", None, "nnUNetPlans", "nnUNetTrainer_MAPO", "0")
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
    """A data set in all its stages but preprocessing."""
    folder = nnunet / "nnUNet_preprocessed" / "Dataset007_Sample"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": PLANS}))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return folder


# Findings -----------------------------------------------------------------------------------------


def test_a_finding_is_a_line_with_the_mending_command_below():
    assert str(Finding(OK, "fine")) == "ok       fine"
    assert (
        str(Finding(PROBLEM, "bad\nvery", "mend")) == "PROBLEM  bad\n         very\n           mend"
    )


# The machine --------------------------------------------------------------------------------------


def test_versions_are_one_line_and_a_missing_one_is_a_note(monkeypatch):
    versions = describe_versions()
    assert versions.level == OK
    for name in ("Python 3.", "nnunetv2-mapo ", "nnunetv2 2.", "torch 2."):
        assert name in versions.what
    monkeypatch.setattr("sys.path", [])
    assert describe_versions().level == NOTE
    assert describe_versions().what.endswith("; nnunetv2 is not installed")


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


@pytest.fixture
def written(monkeypatch):
    """Folders in which was tried to write, which fails; root writes anywhere."""
    folders = []

    def fail(dir):  # noqa: A002  # tempfile's own name
        folders.append(dir)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(machine, "TemporaryFile", fail)
    return folders


def test_a_full_or_read_only_disk_is_found_by_writing(nnunet, written):
    results = nnunet / "nnUNet_results"
    what = f"{results} cannot be written to: {os.strerror(errno.EROFS)}"
    assert check_writable(results / "Dataset007", "free it") == [Finding(PROBLEM, what, "free it")]


def test_nothing_is_left_where_was_written(nnunet):
    assert check_writable(nnunet / "nnUNet_results" / "Dataset007_Sample", "") == []
    assert list((nnunet / "nnUNet_results").iterdir()) == []


def test_disk_grows_with_network_segmentations_and_rounds(tmp_path):
    for case, num_bytes in (("a", 1000), ("b", 3000), ("validation", 9000)):
        (tmp_path / f"{case}_seg.b2nd").write_bytes(bytes(num_bytes))
    # ten networks; two rounds of 4000 bytes of segmentations, times 6.1, and 9216 for each case
    num_bytes = estimate_disk(tmp_path, ["a", "b"], 2, network_bytes=500)
    assert num_bytes == pytest.approx(10 * 500 + 2 * (6.1 * 4000 + 2 * 9216))
    assert estimate_disk(tmp_path, ["a", "b"], 0, network_bytes=500) == 5000


@pytest.mark.parametrize(("free", "level"), [(5, OK), (4, PROBLEM)])
def test_too_little_disk_is_a_problem(free, level, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * 1e9))
    finding = check_disk(5e9, tmp_path)
    assert finding.level == level
    assert f"less than 5.0 GB; {free}.0 GB are free in {tmp_path}" in finding.what
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
        assert describe_dataset(found).level == OK


def test_without_3d_fullres_the_default_is_2d(planned):
    (planned / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": {}}}))
    assert find_dataset(ASKED).configuration == "2d"


@pytest.mark.parametrize("dataset", ["8", "Dataset008_Other", "Sample", "-1"])
def test_a_data_set_that_is_nowhere_is_a_problem_that_lists_the_others(dataset, planned):
    assert "Dataset007_Sample" in find_problem(replace(ASKED, dataset=dataset)).mend


def test_two_data_sets_of_one_number_are_a_problem(planned, nnunet):
    (nnunet / "nnUNet_raw" / "Dataset007_Twin").mkdir()
    assert "More than one dataset" in find_problem(ASKED).what


@pytest.mark.parametrize(
    ("plans", "planner"),
    [("nnUNetPlans", []), ("mine", ["-pl", "PLANNER", "-overwrite_plans_name", "mine"])],
)
def test_a_raw_data_set_is_planned_by_the_command(plans, planner, nnunet):
    (nnunet / "nnUNet_raw" / "Dataset007_Sample").mkdir()
    command = find_problem(replace(ASKED, plans=plans)).mend.splitlines()[0]
    planning = "nnUNetv2_plan_and_preprocess -d 007 --verify_dataset_integrity"
    assert shlex.split(command) == [*planning.split(), *planner]


@pytest.mark.parametrize("name", ["dataset", "dataset_fingerprint", "nnUNetPlans"])
def test_a_missing_or_damaged_file_is_named(name, planned):
    path = planned / f"{name}.json"
    path.write_text("{")
    assert f"{path} cannot be read (JSONDecodeError)" in find_problem(ASKED).what
    path.unlink()
    assert f"{path} cannot be read (FileNotFoundError)" in find_problem(ASKED).what


def test_other_plans_and_configurations_are_listed(planned):
    assert "with -p, other plans: nnUNetPlans" in find_problem(replace(ASKED, plans="mine")).mend
    problem = find_problem(replace(ASKED, configuration="4d"))
    assert problem.mend.endswith("-c: 2d, 3d_lowres, 3d_fullres, 3d_cascade_fullres")


def test_a_fold_that_was_trained_is_a_note(planned):
    found = find_dataset(ASKED)
    fold = found.model / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    assert describe_dataset(found).level == NOTE


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def rehearsed(monkeypatch):
    """What was to be rehearsed, without a process that imports PyTorch."""
    asked = []
    monkeypatch.setattr(doctor_run, "rehearse_in_child", lambda each: asked.append(each) or [])
    return asked


def test_without_a_problem_the_training_as_nnunet_finds_it_is_rehearsed(rehearsed, planned, capsys):
    assert main(["doctor", "-d", "7", "-f", "all"]) == 0
    name, configuration = "Dataset007_Sample", "3d_fullres"
    assert rehearsed == [replace(ASKED, dataset=name, configuration=configuration, fold="all")]
    assert capsys.readouterr().out.splitlines()[-1] == "Importing PyTorch ..."


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


def test_the_deepest_folder_that_is_there_is_written_to(planned, nnunet, written, rehearsed):
    model = nnunet / "nnUNet_results/Dataset007_Sample/nnUNetTrainer_MAPO__nnUNetPlans__3d_fullres"
    model.mkdir(parents=True)
    assert main(["doctor", "-d", "7"]) == 1
    assert written == [model, planned]  # the fold's folder is not made yet; there is no split


def test_fold_all_or_a_split_needs_no_writing_beside_the_preprocessed_data(
    planned, nnunet, written, rehearsed
):
    assert main(["doctor", "-d", "7", "-f", "all"]) == 1
    assert written == [nnunet / "nnUNet_results"]
    (planned / "splits_final.json").touch()
    assert main(["doctor", "-d", "7"]) == 1
    assert written == [nnunet / "nnUNet_results"] * 2


@pytest.mark.skipif(os.name == "nt", reason="no signals")
@pytest.mark.parametrize(("number", "name"), [(4, "SIGILL"), (40, "exit code -40")])
def test_an_import_that_ends_python_is_a_problem(number, name, monkeypatch, tmp_path, capfd):
    file = tmp_path / "torch.py"
    file.write_text(f"import os\nos.kill(os.getpid(), {number})\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["doctor"]) == 1
    captured = capfd.readouterr()
    assert f"PROBLEM  Python ended with {name}\n" in captured.out
    assert number == 40 or f'File "{file}", line 2' in captured.err


def test_a_broken_import_is_one_problem_with_its_error(monkeypatch, tmp_path, capfd):
    file = tmp_path / "torch.py"
    file.write_text("raise OSError('libcudart.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["doctor"]) == 1
    what = f"PROBLEM  a training cannot be imported: OSError: libcudart.so\n         {file}, line 1"
    assert what in capfd.readouterr().out
