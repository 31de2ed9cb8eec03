import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools.doctor import devices, probe
from nnunetv2_mapo.tools.doctor import run as doctor_run
from nnunetv2_mapo.tools.doctor.dataset import Asked, check_dataset
from nnunetv2_mapo.tools.doctor.devices import GPU, Accelerators
from nnunetv2_mapo.tools.doctor.disk import Estimate, check_disk, estimate_preferences
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding
from nnunetv2_mapo.tools.doctor.folders import check_folder, check_writable
from nnunetv2_mapo.tools.doctor.probe import Probed, run_probe
from nnunetv2_mapo.tools.doctor.requirements import find_requirement

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ASKED = Asked("7", None, "nnUNetPlans", "nnUNetTrainer_MAPO", "0")
PLANS = {
    "2d": {"data_identifier": "nnUNetPlans_2d"},
    "3d_lowres": {"data_identifier": "nnUNetPlans_3d_lowres"},
    "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}


@pytest.fixture(autouse=True)
def nnunet(monkeypatch, tmp_path):
    """Folder with nnU-Net's three folders, and nothing else in the environment."""
    for variable in VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    for variable in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc", "nnUNet_compile"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def planned(nnunet):
    """A data set in all its stages but preprocessing."""
    folder = nnunet / "nnUNet_preprocessed" / "Dataset007_Sample"
    for place in (folder, nnunet / "nnUNet_raw" / "Dataset007_Sample"):
        place.mkdir()
        (place / "dataset.json").write_text("{}")
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": PLANS}))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return folder


def run_in_shell(mend):
    """Environment after a mending command, without what the doctor adds in brackets."""
    command = f"{mend.split('  (')[0]} && env -0"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)


# Findings -----------------------------------------------------------------------------------------


def test_a_finding_is_a_line_with_the_mending_command_below():
    assert str(Finding(OK, "fine")) == "ok       fine"
    assert (
        str(Finding(PROBLEM, "bad\nvery", "mend")) == "PROBLEM  bad\n         very\n           mend"
    )


# Folders ------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="commands of a POSIX shell")
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_is_not_set_is_mended_by_the_command(variable, nnunet, monkeypatch):
    monkeypatch.setenv("HOME", str(nnunet / "my home"))
    monkeypatch.delenv(variable)
    finding = check_folder(variable)
    assert finding[:2] == (PROBLEM, f"{variable} is not set")
    monkeypatch.setenv(variable, run_in_shell(finding.mend)[variable])
    assert check_folder(variable).level == OK


@pytest.mark.skipif(os.name == "nt", reason="commands of a POSIX shell")
def test_a_folder_that_does_not_exist_is_made_by_the_command(nnunet, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(nnunet / "not yet" / "there"))
    finding = check_folder("nnUNet_results")
    assert finding.level == PROBLEM
    run_in_shell(finding.mend)
    assert check_folder("nnUNet_results").level == OK


def test_a_file_in_place_of_a_folder_is_a_problem(nnunet, monkeypatch):
    (nnunet / "file").touch()
    monkeypatch.setenv("nnUNet_results", str(nnunet / "file"))
    finding = check_folder("nnUNet_results")
    assert finding.level == PROBLEM
    assert "export nnUNet_results=" in finding.mend or os.name == "nt"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_found_by_writing(number, nnunet, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", fail)
    [finding] = check_writable(nnunet / "nnUNet_results", "another disk")
    what = f"{nnunet / 'nnUNet_results'} cannot be written to: {os.strerror(number)}"
    assert finding == (PROBLEM, what, "another disk")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root writes anywhere")
def test_an_own_folder_without_permission_is_mended_by_the_command(nnunet):
    (nnunet / "nnUNet_results").chmod(0o555)
    [finding] = check_writable(nnunet / "nnUNet_results", "")
    assert finding.level == PROBLEM
    run_in_shell(finding.mend)
    assert check_writable(nnunet / "nnUNet_results", "") == []


@pytest.fixture
def written(monkeypatch):
    """Folders in which was tried to write, which fails; root writes anywhere."""
    folders = []

    def fail(path, _):
        folders.append(path.parent)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", fail)
    return folders


def test_the_deepest_folder_that_is_there_is_written_to(planned, nnunet, written):
    _, prepared = check_dataset(ASKED)
    model = nnunet / "nnUNet_results/Dataset007_Sample/nnUNetTrainer_MAPO__nnUNetPlans__3d_fullres"
    model.mkdir(parents=True)
    findings = doctor_run.check_folders(ASKED, prepared)
    assert written == [model, planned]  # the fold's folder is not made yet; there is no split
    assert [finding.level for finding in findings] == [OK, OK, OK, PROBLEM, PROBLEM]


def test_fold_all_or_a_split_needs_no_writing_beside_the_preprocessed_data(
    planned, nnunet, written
):
    _, prepared = check_dataset(ASKED)
    doctor_run.check_folders(replace(ASKED, fold="all"), prepared)
    assert written == [nnunet / "nnUNet_results"]
    (planned / "splits_final.json").touch()
    doctor_run.check_folders(ASKED, prepared)
    assert written == [nnunet / "nnUNet_results"] * 2


def test_nothing_is_left_where_was_written(nnunet):
    assert check_writable(nnunet / "nnUNet_results" / "Dataset007_Sample", "") == []
    assert list((nnunet / "nnUNet_results").iterdir()) == []


# Data set -----------------------------------------------------------------------------------------


def only_problem(findings):
    [problem] = [finding for finding in findings if finding.level == PROBLEM]
    return problem


def test_a_planned_data_set_is_found_by_number_and_by_name(planned):
    for dataset in ("7", "007", "Dataset007_Sample"):
        findings, prepared = check_dataset(Asked(dataset, None, "nnUNetPlans", "T", "0"))
        assert [finding.level for finding in findings] == [OK]
        assert (prepared.folder, prepared.configuration) == (planned, "3d_fullres")


def test_a_file_that_is_named_like_a_data_set_is_none(planned, nnunet):
    (nnunet / "nnUNet_raw" / "Dataset007_Sample.zip").touch()
    assert check_dataset(ASKED)[1].name == "Dataset007_Sample"


def test_a_missing_fingerprint_is_made_by_the_command(planned):
    (planned / "dataset_fingerprint.json").unlink()
    problem = only_problem(check_dataset(ASKED)[0])
    assert problem.mend == "nnUNetv2_extract_fingerprint -d 7"


@pytest.mark.parametrize("dataset", ["8", "Dataset008_Other", "Sample", "-1"])
def test_a_data_set_that_is_nowhere_is_a_problem_that_lists_the_others(dataset, planned):
    findings, prepared = check_dataset(Asked(dataset, None, "nnUNetPlans", "T", "0"))
    assert prepared is None
    assert "Dataset007_Sample" in only_problem(findings).mend


def test_two_data_sets_of_one_number_are_a_problem(planned, nnunet):
    (nnunet / "nnUNet_raw" / "Dataset007_Twin").mkdir()
    problem = only_problem(check_dataset(ASKED)[0])
    assert "Dataset007_Sample or Dataset007_Twin" in problem.what


@pytest.mark.parametrize(
    ("plans", "planner"),
    [("nnUNetPlans", []), ("nnUNetResEncUNetMPlans", ["-pl", "nnUNetPlannerResEncM"])],
)
def test_a_raw_data_set_is_planned_by_the_command(plans, planner, nnunet):
    (nnunet / "nnUNet_raw" / "Dataset007_Sample").mkdir()
    problem = only_problem(check_dataset(Asked("7", None, plans, "T", "0"))[0])
    command = "nnUNetv2_plan_and_preprocess -d 7 --verify_dataset_integrity"
    assert shlex.split(problem.mend) == [*command.split(), *planner]


def test_other_plans_and_configurations_are_listed(planned):
    problem = only_problem(check_dataset(Asked("7", None, "mine", "T", "0"))[0])
    assert "there are nnUNetPlans, to be chosen with -p" in problem.what
    problem = only_problem(check_dataset(Asked("7", "4d", "nnUNetPlans", "T", "0"))[0])
    assert problem.mend.endswith("-c: 2d, 3d_lowres, 3d_fullres, 3d_cascade_fullres")


def test_damaged_plans_are_a_problem(planned):
    (planned / "nnUNetPlans.json").write_text("{")
    assert "cannot be read: JSONDecodeError" in only_problem(check_dataset(ASKED)[0]).what


def test_a_fold_that_was_trained_is_a_note(planned, nnunet):
    model = "nnUNetTrainer_MAPO__nnUNetPlans__3d_fullres"
    fold = nnunet / "nnUNet_results" / "Dataset007_Sample" / model / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    findings, _ = check_dataset(ASKED)
    assert [finding.level for finding in findings] == [OK, NOTE]


# Disk ---------------------------------------------------------------------------------------------


def test_disk_grows_with_the_segmentations_of_the_training_cases_and_the_rounds(tmp_path):
    for case, num_bytes in (("a", 1000), ("b", 3000), ("validation", 9000)):
        (tmp_path / f"{case}_seg.b2nd").write_bytes(bytes(num_bytes))
    # two rounds of 4000 bytes of segmentations, times 26 or 6.1, and 9216 bytes for each case
    estimate = estimate_preferences(tmp_path, ["a", "b"], num_rounds=2)
    assert estimate.largest == pytest.approx(2 * (26 * 4000 + 2 * 9216))
    assert estimate.usual == pytest.approx(2 * (6.1 * 4000 + 2 * 9216))


@pytest.mark.parametrize(("free", "level"), [(30, OK), (10, NOTE), (3, PROBLEM)])
def test_disk_is_a_problem_where_not_even_the_usual_fits(free, level, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * 1e9))
    finding = check_disk(Estimate(usual=5e9, largest=2e10), tmp_path, num_rounds=4)
    assert finding.level == level
    assert "at most about 20.0 GB, usually less than 5.0 GB" in finding.what
    assert bool(finding.mend) == (level != OK)


# Devices ------------------------------------------------------------------------------------------

CARD = GPU("NVIDIA H100", 80_000_000_000, 79_000_000_000)


def test_a_gpu_is_described_and_one_in_use_is_a_note():
    [free] = devices.check_accelerators(Accelerators("12.6", [CARD]))
    assert free.level == OK
    assert free.what == "GPU 0: NVIDIA H100, 80.0 GB, 79.0 GB free"
    busy = replace(CARD, num_free=30_000_000_000)
    assert devices.check_accelerators(Accelerators("12.6", [busy]))[0].level == NOTE


def test_a_device_that_is_asked_for_turns_other_problems_into_notes():
    outdated = Accelerators("13.0", error="too old", driver="12.4")
    assert devices.check_accelerators(outdated, "cpu")[0].level == NOTE
    assert devices.check_accelerators(outdated, "cuda")[0].level == PROBLEM
    assert devices.check_accelerators(Accelerators(), "cuda")[0].level == PROBLEM
    assert devices.check_accelerators(Accelerators("12.6", [CARD]), "cuda")[0].level == OK


@pytest.mark.parametrize(
    ("seen", "level", "what", "mend"),
    [
        (Accelerators(), NOTE, "no GPU: training works on the CPU with -device cpu, slowly", ""),
        (Accelerators(driver="12.4"), PROBLEM, "built without CUDA", "/whl/cu126"),
        (Accelerators(driver="13.1"), PROBLEM, "built without CUDA", "/whl/cu130"),
        (Accelerators("13.0", error="too old", driver="12.4"), PROBLEM, "too old", "/whl/cu126"),
        (Accelerators("12.6", error="old", driver="10.2"), PROBLEM, "old", "nvidia.com/drivers"),
        (Accelerators("12.6", error="no driver"), NOTE, "no GPU", ""),
    ],
)
def test_without_a_usable_gpu_the_reason_is_said(seen, level, what, mend, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    [finding] = devices.check_accelerators(seen)
    assert finding.level == level
    assert what in finding.what
    assert mend in finding.mend if mend else finding.mend == ""
    assert "/whl/" not in finding.mend or find_requirement("torch") in finding.mend
    assert seen.device == "cpu"


def test_gpus_that_are_hidden_are_a_note(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    [finding] = devices.check_accelerators(Accelerators("12.6", driver="12.6"))
    assert finding.level == NOTE
    assert "CUDA_VISIBLE_DEVICES" in finding.mend


@pytest.mark.skipif(os.name == "nt", reason="nnU-Net does not compile on Windows")
def test_compiling_without_a_compiler_is_mended_by_the_export(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    [finding] = devices.check_compiling("cuda")
    assert finding.level == PROBLEM
    assert "a C compiler" in finding.what
    monkeypatch.setenv("nnUNet_compile", run_in_shell(finding.mend)["nnUNet_compile"])
    assert [each.level for each in devices.check_compiling("cuda")] == [OK]
    assert devices.check_compiling("cpu")[0].level == OK


@pytest.mark.parametrize(
    ("value", "level"), [("many", PROBLEM), ("", PROBLEM), ("0", NOTE), ("1", OK)]
)
def test_number_of_augmenting_processes_is_checked(value, level, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=8e9))
    assert devices.check_processor()[-1].level == level


@pytest.mark.parametrize(("value", "has_problem"), [("0", True), ("x", True), ("2", False)])
def test_nnunet_cannot_export_its_predictions_with_0_processes(value, has_problem, monkeypatch):
    monkeypatch.setenv("nnUNet_def_n_proc", value)
    levels = [finding.level for finding in devices.check_processor()]
    assert (PROBLEM in levels) == has_problem


def test_more_processes_than_cores_are_a_note(monkeypatch):
    monkeypatch.setattr(devices, "_count_cores", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    finding = devices.check_processor()[-1]
    assert finding.level == NOTE
    assert finding.what == "12 processes augment on 1 cores"
    assert "nnUNet_n_proc_DA=1" in finding.mend


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory to look at")
def test_the_little_shared_memory_of_a_container_is_a_note(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=64e6))
    finding = devices.check_processor()[-1]
    assert finding.level == NOTE
    assert "/dev/shm, which has 64.0 MB only" in finding.what
    assert run_in_shell(finding.mend)["nnUNet_n_proc_DA"] == "0"


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def light(monkeypatch):
    """The doctor without the process that imports PyTorch, in an installation that fits."""
    monkeypatch.setattr(doctor_run, "run_probe", lambda *_: Probed([Finding(OK, "probed")], "cpu"))
    for name in ("check_requirements", "check_installation", "check_external_folders"):
        monkeypatch.setattr(doctor_run, name, list)


def test_the_training_command_is_last(light, planned, capsys):
    assert main(["doctor", "-d", "7", "-p", "nnUNetPlans", "-f", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Importing PyTorch ..."
    command = "nnUNetv2_train 7 3d_fullres all -tr nnUNetTrainer_MAPO -device cpu"
    assert lines[-1] == f"Ready: {command}"


def test_exit_code_is_1_and_every_mending_command_is_printed(light, planned, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results")
    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    assert main(["doctor", "-d", "8"]) == 1
    captured = capsys.readouterr()
    assert "export nnUNet_results=" in captured.out or os.name == "nt"
    assert "nnUNet_n_proc_DA=" in captured.out
    assert "no data set 8" in captured.out
    assert captured.err.startswith("nnUNetv2_mapo: error: 3 problems to mend, from the top")
    assert "Ready" not in captured.out


def test_raw_data_is_not_needed_for_a_data_set_that_is_planned(light, planned, nnunet, capsys):
    shutil.rmtree(nnunet / "nnUNet_raw")
    assert main(["doctor", "-d", "7"]) == 0
    assert main(["doctor"]) == 1


def test_a_check_that_raises_is_a_problem_and_the_others_go_on(light, monkeypatch, capsys):
    def check_requirements():
        message = "metadata is damaged"
        raise KeyError(message)

    monkeypatch.setattr(doctor_run, "check_requirements", check_requirements)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    what = "check_requirements could not be checked: KeyError: 'metadata is damaged'"
    assert f"PROBLEM  {what}\nok " in out  # without a command: nobody knows what mends it
    assert "ok       probed" in out


@pytest.mark.skipif(os.name == "nt", reason="no signals")
@pytest.mark.parametrize(("number", "name"), [(4, "SIGILL"), (40, "signal 40")])
def test_an_import_that_ends_python_is_named_and_is_the_last(number, name, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text(f"import os\nos.kill(os.getpid(), {number})\n")
    monkeypatch.syspath_prepend(tmp_path)
    [finding] = run_probe(ASKED).findings
    assert finding[:2] == (PROBLEM, f"import torch: Python was ended by {name}")
    pip = f"{sys.executable} -m pip install --force-reinstall 'torch"
    assert finding.mend.startswith(pip)


def test_a_broken_import_ends_the_checks_that_need_it(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch, rest = run_probe(ASKED).findings
    assert torch[:2] == (PROBLEM, "import torch: OSError: libcudart.so")
    assert rest.level == NOTE


def test_an_import_that_does_not_end_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(probe, "TIMEOUT_S", 2.0)
    assert run_probe(ASKED).findings[-1][:2] == (PROBLEM, "import torch: no answer in 2 s")
