import importlib
import json
import os
import sys
from pathlib import Path

import nnunetv2
import pytest

import nnunetv2_mapo
from nnunetv2_mapo.tools.doctor import imports, installation, requirements, trainers
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM
from nnunetv2_mapo.tools.doctor.imports import check_import
from nnunetv2_mapo.tools.doctor.requirements import (
    check_requirements,
    find_requirement,
    say_reinstall,
)

PIP = f"{sys.executable} -m pip"
TRAINER_CONFIGS = Path(__file__).parents[3] / "trainer_configs"


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
    assert torch.mend == f"{PIP} install 'torch!=2.9.*,>=2.1.2'"


def test_what_is_missing_or_too_old_is_a_problem_each(only):
    install(only, "nnunetv2-mapo", "0.1.0", "monai>=1.4", "nnunetv2>=2.8.1")
    install(only, "nnunetv2", "2.7.0")
    _, monai, nnunet, _ = check_requirements()
    assert monai[1:] == (
        "nnunetv2-mapo requires monai>=1.4, which is not installed",
        f"{PIP} install 'monai>=1.4'",
    )
    assert nnunet.mend == f"{PIP} install 'nnunetv2>=2.8.1'"


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
        f"{PIP} install 'nnunetv2>=2.8.1'"
    }


def test_a_checkout_that_was_never_installed_is_a_note(only):
    install(only, "nnunetv2", "2.8.1")
    _, own, _ = check_requirements()
    assert own.level == NOTE
    assert own.mend.startswith(f"{PIP} install")


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
    assert finding.mend.startswith(f"{PIP} install --force-reinstall 'torch")
    assert finding.mend.endswith(" torchvision")


def test_another_package_is_installed_anew_without_what_it_requires(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "find_requirement", lambda name: name)
    monkeypatch.setattr(requirements, "find_requirement", lambda name: name)
    for text, command in (
        ("raise RuntimeError('damaged')", "install --force-reinstall --no-deps monai"),
        ("import unheard_of", "install monai"),
    ):
        (tmp_path / "monai.py").write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(sys.modules, "monai", raising=False)
            patch.setattr(sys, "dont_write_bytecode", True)
            [finding] = check_import("monai")
            sys.modules.pop("monai", None)
        assert finding.mend == f"{PIP} {command}"


@pytest.mark.parametrize(
    ("record", "origin"),
    [
        ({}, "nnunetv2"),
        ({"url": "file:///src/nn", "dir_info": {"editable": True}}, "-e /src/nn"),
        ({"url": "file:///src/nn-2.whl", "archive_info": {}}, "/src/nn-2.whl"),
        ({"url": "https://x.org/nn", "vcs_info": {"vcs": "git"}}, "git+https://x.org/nn"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="paths of a POSIX shell")
def test_a_package_is_installed_anew_from_where_it_came_from(record, origin, only):
    install(only, "nnunetv2", "2.8.1", **{"direct_url.json": json.dumps(record)})
    command = say_reinstall("nnunetv2")
    assert command == f"{PIP} install --force-reinstall --no-deps {origin}"


def test_pip_is_asked_for_a_package_as_nnunet_requires_it():
    assert find_requirement("torch").startswith("torch!=2.9")
    assert find_requirement("unheard-of") == "unheard-of"


# Conflicts ----------------------------------------------------------------------------------------


def test_two_installations_of_nnunet_are_a_note_and_in_one_place_a_problem(only, monkeypatch):
    install(only / "a", "nnunetv2", "2.8.1")
    install(only / "b", "nnunetv2", "2.8.0")
    monkeypatch.setattr(sys, "path", [str(only / "a"), str(only / "b")])
    [finding] = installation.check_distributions()
    assert finding.level == NOTE  # the first counts
    assert finding.mend == ""  # nothing has to be uninstalled
    install(only / "a", "nnunetv2", "2.7.0")  # a failed upgrade
    [finding] = installation.check_distributions()
    assert finding.level == PROBLEM
    assert finding.mend.startswith(f"{PIP} uninstall -y nnunetv2 ")
    assert f"2.8.1 in {only / 'a'}, 2.8.0 in {only / 'b'}" in finding.what


def test_metadata_of_another_version_is_a_note(only):
    install(only, "nnunetv2-mapo", "0.0.1")
    [note] = installation.check_distributions()
    assert note.level == NOTE
    assert f"0.0.1, but {nnunetv2_mapo.__version__} is imported" in note.what


def test_an_nnunet_that_the_trainers_folder_hides_is_a_problem(only, monkeypatch):
    record = {"url": (only / "checkout").as_uri(), "dir_info": {"editable": True}}
    install(only, "nnunetv2", "2.8.1", **{"direct_url.json": json.dumps(record)})
    (only / "nnunetv2" / "training").mkdir(parents=True)  # all that the wheel puts there
    monkeypatch.delitem(sys.modules, "nnunetv2", raising=False)
    [finding] = installation.check_hidden_nnunet()
    assert finding.level == PROBLEM
    checkout = f"install -e {only / 'checkout'} --config-settings editable_mode=compat"
    assert finding.mend == f"{PIP} {checkout}"
    (only / "nnunetv2" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert installation.check_hidden_nnunet() == []


@pytest.fixture
def inside(monkeypatch, tmp_path):
    """An nnU-Net whose folder of MAPO's trainers has one file."""
    folder = tmp_path / "site" / "mapo"
    folder.mkdir(parents=True)
    (folder / "mapo_rule.py").write_text("rule = 1\n")
    monkeypatch.setattr(installation, "find_installed_trainers", lambda: folder)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    return folder


def test_trainers_in_nnunet_that_differ_from_the_checkout_s_are_a_problem(inside, tmp_path):
    configs = tmp_path / "checkout" / "trainer_configs"
    configs.mkdir(parents=True)
    package = tmp_path / "checkout" / "nnunetv2_mapo"
    (configs / "mapo_rule.py").write_text("rule = 1\n")
    assert installation.check_trainer_files(package) == []
    (configs / "mapo_new.py").touch()
    [finding] = installation.check_trainer_files(package)
    assert finding.level == PROBLEM
    assert finding.what.endswith("nnU-Net looks there first: mapo_new.py")
    assert finding.mend.startswith(f"{PIP} install")


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
    (tmp_path / "nnunetv2" / "training" / "nnUNetTrainer").mkdir(parents=True)
    places = [str(tmp_path / "nnunetv2"), *nnunetv2.__path__]  # nnU-Net searches the first one
    monkeypatch.setattr(nnunetv2, "__path__", places)
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


def test_a_trainer_is_found_with_its_class_and_file(own):
    text = (
        "from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO\n"
        "class nnUNetTrainer_MAPO_doctored(nnUNetTrainer_MAPO):\n"
        "    mapo = MAPOConfig(num_rounds=2)\n"
    )
    (own / "mine.py").write_text(text)
    finding, trainer = trainers.find_trainer("nnUNetTrainer_MAPO_doctored")
    assert trainer.mapo.num_rounds == 2
    what = f"nnUNetTrainer_MAPO_doctored(nnUNetTrainer_MAPO); its class is in {own / 'mine.py'}"
    assert finding == (OK, what, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import unheard_of\n", "ModuleNotFoundError: No module named 'unheard_of'"),
        ("class X(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_broken_module_on_the_way_is_named_and_leaving_its_folder_out_mends_it(
    own, text, reason, monkeypatch
):
    (own / "broken.py").write_text(text)
    monkeypatch.setenv("nnUNet_extTrainer", f"{own}{os.pathsep}{TRAINER_CONFIGS}")
    finding, trainer = trainers.find_trainer("nnUNetTrainer_MAPO")
    assert trainer is None
    assert finding.level == PROBLEM
    assert finding.what.startswith(f"{own / 'broken.py'} cannot be imported")
    assert reason in finding.what
    obey(finding.mend, monkeypatch)
    assert trainers.find_trainer("nnUNetTrainer_MAPO").finding.level == OK


def test_a_broken_module_behind_the_trainer_is_no_problem(own):
    (own / "broken.py").write_text("import unheard_of\n")  # its folder is the second one
    assert trainers.find_trainer("nnUNetTrainer_MAPO").finding.level == OK
    assert trainers.find_trainer("nnUNetTrainerStock").finding.level == PROBLEM


def test_mapo_s_trainers_are_found_after_the_export_that_is_recommended(own, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(own))
    finding, _ = trainers.find_trainer("nnUNetTrainer_MAPO")
    assert finding[:2] == (PROBLEM, "nnU-Net finds no trainer nnUNetTrainer_MAPO")
    obey(finding.mend, monkeypatch)
    assert trainers.find_trainer("nnUNetTrainer_MAPO").finding.level == OK
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
    finding, trainer = trainers.find_trainer("nnUNetTrainerDA55_MAPO")
    assert trainer is None
    assert finding.level == PROBLEM
    assert "nnU-Net knows no trainer nnUNetTrainerDA55" in finding.what


def test_a_class_that_is_no_trainer_is_a_problem(own):
    (own / "other.py").write_text("class nnUNetTrainerOther: pass\n")
    finding, trainer = trainers.find_trainer("nnUNetTrainerOther")
    assert trainer is None
    assert finding.level == PROBLEM
    assert "must inherit from 'nnUNetTrainer'" in finding.what


def test_a_trainer_without_mapo_is_a_note(own):
    text = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
    (own / "stock.py").write_text(f"{text}class nnUNetTrainerStock(nnUNetTrainer): pass\n")
    finding, trainer = trainers.find_trainer("nnUNetTrainerStock")
    assert trainer is not None
    assert finding.level == NOTE
    assert finding.mend == "-tr nnUNetTrainerStock_MAPO"
