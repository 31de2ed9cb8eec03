import base64
import hashlib
import os
import sys
from pathlib import Path

import pytest

import nnunetv2_mapo
from nnunetv2_mapo.doctor import installation, trainers
from nnunetv2_mapo.doctor.finding import NOTE, OK, PROBLEM
from nnunetv2_mapo.doctor.imports import check_import
from nnunetv2_mapo.doctor.requirements import check_requirements, find_requirement

TRAINER_CONFIGS = Path(__file__).parents[1] / "trainer_configs"


def install(folder, name, version, *requires, **files):
    """Metadata of a distribution as pip writes it, and nothing else of it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]))
    for file, content in files.items():
        (info / file).write_text(content)


@pytest.fixture
def only(monkeypatch, tmp_path):
    """A folder that is the only place where distributions are looked for."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


# Requirements -------------------------------------------------------------------------------------


def test_a_version_that_nnunet_excludes_is_a_problem_that_pip_mends(only):
    install(only, "nnunetv2-mapo", "0.1.0", "nnunetv2>=2.8.1")
    install(only, "nnunetv2", "2.8.1", "torch!=2.9.*,>=2.1.2", "tqdm")
    install(only, "torch", "2.9.1+cu126")
    install(only, "tqdm", "4.0")
    versions, own, torch = check_requirements()
    assert "torch 2.9.1+cu126, torchvision missing" in versions.what
    assert own == (OK, "1 of 1 packages that nnunetv2-mapo requires fit", "")
    assert torch.level == PROBLEM
    assert torch.what.endswith(", installed is 2.9.1+cu126")
    assert torch.mend == "pip install 'torch!=2.9.*,>=2.1.2'"


def test_what_is_missing_or_too_old_is_a_problem_each(only):
    install(only, "nnunetv2-mapo", "0.1.0", "monai>=1.4", "nnunetv2>=2.8.1")
    install(only, "nnunetv2", "2.7.0")
    _, monai, nnunet, _ = check_requirements()
    assert monai[1:] == (
        "nnunetv2-mapo requires monai>=1.4, which is not installed",
        "pip install 'monai>=1.4'",
    )
    assert nnunet.mend == "pip install 'nnunetv2>=2.8.1'"


def test_requirements_of_extras_and_of_other_systems_do_not_count(only):
    install(only, "nnunetv2-mapo", "0.1.0", "ruff; extra == 'test'", "x; sys_platform == 'vms'")
    install(only, "nnunetv2", "2.8.1")
    assert [finding.level for finding in check_requirements()] == [OK, OK, OK]


def test_a_nightly_build_of_a_newer_version_fits(only):
    install(only, "nnunetv2-mapo", "0.1.0")
    install(only, "nnunetv2", "2.8.1", "torch!=2.9.*,>=2.1.2")
    install(only, "torch", "2.16.0.dev20270101+cu130")
    assert [finding.level for finding in check_requirements()] == [OK, OK, OK]


def test_without_nnunet_pip_installs_the_version_that_is_needed(only):
    install(only, "nnunetv2-mapo", "0.1.0", "nnunetv2>=2.8.1")
    assert {f.mend for f in check_requirements() if f.level == PROBLEM} == {
        "pip install 'nnunetv2>=2.8.1'"
    }


def test_a_checkout_that_was_never_installed_is_a_note(only):
    install(only, "nnunetv2", "2.8.1")
    _, own, _ = check_requirements()
    assert own.level == NOTE
    assert own.mend.startswith("pip install")


# Imports ------------------------------------------------------------------------------------------


def test_a_torchvision_of_another_torch_is_installed_anew_together_with_torch(
    monkeypatch, tmp_path
):
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    [finding] = check_import("torchvision")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    what = "import torchvision: RuntimeError: operator torchvision::nms does not exist"
    assert finding[:2] == (PROBLEM, what)
    assert finding.mend.startswith("pip install --force-reinstall 'torch")
    assert finding.mend.endswith(" torchvision")


def test_pip_is_asked_for_a_package_as_nnunet_requires_it():
    assert find_requirement("torch").startswith("torch!=2.9")
    assert find_requirement("unheard-of") == "unheard-of"


# Conflicts ----------------------------------------------------------------------------------------


def test_a_second_copy_of_the_package_is_named(monkeypatch, tmp_path):
    used = Path(nnunetv2_mapo.__file__).parent
    second = tmp_path / "nnunetv2_mapo"
    second.mkdir()
    (second / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(used.parent), str(tmp_path)])
    [finding] = installation.check_copies("nnunetv2_mapo", used)
    assert finding.level == NOTE
    assert finding.what.endswith(f"not {second.resolve()}")


def test_two_installations_of_nnunet_are_a_note_and_in_one_place_a_problem(only, monkeypatch):
    install(only / "a", "nnunetv2", "2.8.1")
    install(only / "b", "nnunetv2", "2.8.0")
    monkeypatch.setattr(sys, "path", [str(only / "a"), str(only / "b")])
    [finding] = installation.check_distributions()
    assert finding.level == NOTE  # the first counts
    assert finding.mend.startswith("pip uninstall -y nnunetv2 ")
    install(only / "a", "nnunetv2", "2.7.0")  # a failed upgrade
    [finding] = installation.check_distributions()
    assert finding.level == PROBLEM
    assert f"2.8.1 in {only / 'a'}, 2.8.0 in {only / 'b'}" in finding.what


def test_metadata_of_another_version_and_the_first_nnunet_are_notes(only):
    install(only, "nnunetv2-mapo", "0.0.1")
    install(only, "nnunet", "1.7.1")
    notes = installation.check_distributions()
    assert [finding.level for finding in notes] == [NOTE, NOTE]
    assert f"0.0.1, but {nnunetv2_mapo.__version__} is imported" in notes[0].what
    assert "v1" in notes[1].what


@pytest.fixture
def inside(monkeypatch, tmp_path):
    """An nnU-Net whose folder of MAPO's trainers has one file."""
    nnunet = tmp_path / "site" / "nnunetv2"
    folder = nnunet / installation.INSIDE_NNUNET
    folder.mkdir(parents=True)
    (folder / "mapo_rule.py").write_text("rule = 1\n")
    monkeypatch.setattr(installation, "find_nnunet", lambda: nnunet)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    return folder


def test_trainers_in_nnunet_that_differ_from_the_checkout_s_are_a_problem(inside, tmp_path):
    configs = tmp_path / "checkout" / "trainer_configs"
    configs.mkdir(parents=True)
    package = tmp_path / "checkout" / "nnunetv2_mapo"
    (configs / "mapo_rule.py").write_bytes(b"rule = 1\r\n")  # the same but for its line ends
    assert installation.check_trainer_files(package) == []
    (configs / "mapo_new.py").touch()
    [finding] = installation.check_trainer_files(package)
    assert finding.level == PROBLEM
    assert finding.what.endswith("nnU-Net looks there first: mapo_new.py")
    assert finding.mend.startswith("pip install")


def test_trainers_in_nnunet_that_differ_from_the_wheel_s_are_a_problem(inside, only):
    digest = hashlib.sha256(b"rule = 1\n").digest()
    recorded = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    end = "/".join(installation.INSIDE_NNUNET.parts)
    line = f"nnunetv2/{end}/mapo_rule.py,sha256={recorded},9\n"
    install(only, "nnunetv2-mapo", "0.1.0", RECORD=line)
    package = only / "nnunetv2_mapo"
    assert installation.check_trainer_files(package) == []
    (inside / "mapo_rule.py").write_text("rule = 2\n")
    [finding] = installation.check_trainer_files(package)
    assert finding.level == PROBLEM
    assert "mapo_rule.py" in finding.what


def test_other_trainers_of_mapo_in_an_external_folder_are_said_to_be_unused(
    inside, only, monkeypatch
):
    external = only / "external"
    external.mkdir()
    (external / "mapo_rule.py").write_text("rule = 2\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(external))
    [finding] = installation.check_trainer_files(only / "nnunetv2_mapo")
    assert finding.level == NOTE
    assert f"{external} of nnUNet_extTrainer is not used" in finding.what


# Trainers -----------------------------------------------------------------------------------------


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder of a user's trainers, besides the checkout's; nnU-Net has none of MAPO itself."""
    folder = tmp_path / "own trainers"
    folder.mkdir()
    monkeypatch.setattr(trainers, "find_nnunet", lambda: None)
    monkeypatch.setattr(trainers, "find_trainer_configs", lambda: [TRAINER_CONFIGS])
    monkeypatch.setenv("nnUNet_extTrainer", f"{TRAINER_CONFIGS}{os.pathsep}{folder}")
    return folder


def obey(mend, monkeypatch):
    """Set or unset the variable as a command says, as a shell would."""
    command, _, rest = mend.split("  (")[0].partition(" ")
    name, _, value = rest.partition("=")
    if command == "unset":
        monkeypatch.delenv(name)
    else:
        assert command == "export"
        monkeypatch.setenv(name, value.strip("'"))


def test_trainers_are_found_with_their_class_file_and_way(own):
    text = (
        "from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO\n"
        "class nnUNetTrainer_MAPO_doctored(nnUNetTrainer_MAPO):\n"
        "    mapo = MAPOConfig(num_rounds=2)\n"
    )
    (own / "mine.py").write_text(text)
    (plain, variant), trainer = trainers.check_trainers("nnUNetTrainer_MAPO_doctored")
    assert trainer.mapo.num_rounds == 2
    assert plain.level == OK
    assert f"through nnUNet_extTrainer {TRAINER_CONFIGS}" in plain.what
    assert variant.what.endswith(f"its class is in {own / 'mine.py'}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import unheard_of\n", "ModuleNotFoundError: No module named 'unheard_of'"),
        ("class X(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_broken_module_is_named_and_leaving_its_folder_out_mends_it(
    own, text, reason, monkeypatch
):
    (own / "broken.py").write_text(text)
    [finding], trainer = trainers.check_trainers("nnUNetTrainer_MAPO")
    assert trainer is None
    assert finding.level == PROBLEM
    assert finding.what.startswith(f"{own / 'broken.py'} cannot be imported")
    assert reason in finding.what
    obey(finding.mend, monkeypatch)
    findings, _ = trainers.check_trainers("nnUNetTrainer_MAPO")
    assert [finding.level for finding in findings] == [OK]


def test_mapo_s_trainers_are_found_after_the_export_that_is_recommended(own, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(own))
    [finding], _ = trainers.check_trainers("nnUNetTrainer_MAPO")
    assert finding[:2] == (PROBLEM, "nnU-Net finds no trainer nnUNetTrainer_MAPO")
    obey(finding.mend, monkeypatch)
    findings, _ = trainers.check_trainers("nnUNetTrainer_MAPO")
    assert [finding.level for finding in findings] == [OK]
    assert str(own) in os.environ["nnUNet_extTrainer"]


def test_a_folder_that_does_not_exist_is_a_note_that_the_export_mends(own, monkeypatch):
    own.rmdir()
    [finding] = trainers.check_external_folders()
    assert finding.level == NOTE
    assert str(own) in finding.what
    obey(finding.mend, monkeypatch)
    assert trainers.check_external_folders() == []
    monkeypatch.setenv("nnUNet_extTrainer", str(own))
    assert trainers.check_external_folders()[0].mend == "unset nnUNet_extTrainer"


def test_an_unknown_base_is_explained_by_the_rule_of_names(own):
    (_, finding), trainer = trainers.check_trainers("nnUNetTrainerDA55_MAPO")
    assert trainer is None
    assert finding.level == PROBLEM
    assert "nnU-Net knows no trainer nnUNetTrainerDA55" in finding.what


@pytest.mark.parametrize(
    ("settings", "reason"),
    [("MAPOConfig(tau=2)", "tau=2 is not valid: a number in (0, 1]"), ("{'tau': 0.2}", "a MAPOC")],
)
def test_settings_that_are_not_valid_are_a_problem_with_the_file(own, settings, reason):
    text = (
        "from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO\n"
        f"class nnUNetTrainer_MAPO_wrong(nnUNetTrainer_MAPO):\n    mapo = {settings}\n"
    )
    (own / "wrong.py").write_text(text)
    findings, trainer = trainers.check_trainers("nnUNetTrainer_MAPO_wrong")
    assert trainer is None
    assert findings[-1].level == PROBLEM
    assert reason in findings[-1].what
    assert findings[-1].mend == f"correct it in {own / 'wrong.py'}"


def test_a_trainer_without_mapo_is_a_note(own):
    text = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
    (own / "stock.py").write_text(f"{text}class nnUNetTrainerStock(nnUNetTrainer): pass\n")
    (_, finding), trainer = trainers.check_trainers("nnUNetTrainerStock")
    assert trainer is not None
    assert finding.level == NOTE
    assert finding.mend == "-tr nnUNetTrainerStock_MAPO"
