from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nnunetv2
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
)
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

from nnunetv2_mapo import rule
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.trainer import MAPOTrainer, nnUNetTrainer_MAPO

TRAINER_CONFIGS = Path(__file__).parents[1] / "trainer_configs"
INSTALLED = Path(nnunetv2.__path__[0], "training", "nnUNetTrainer", "variants", "mapo")
PAPER = MAPOConfig(
    rates="fixed",
    rates_3d=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    tile_step_size=1.0,
    pair="case",
    agree=False,
    tau=0.3,
    beta=0.1,
    lambda_supervised=0.5,
    likelihood="image",
    reference="network",
    warmup_dropout=True,
    preference_dropout="off",
    num_epochs_2d=300,
    num_epochs_3d=1300,
    adam_learning_rate=1e-4,
)
FINE_TUNE = MAPOConfig(
    fine_tune=True,
    num_epochs_factor=0.2,
    learning_rate_factor=0.1,
    warmup_fraction_2d=0.25,
    warmup_fraction_3d=0.25,
    warmup_dropout=True,
    preference_dropout="without pair",
)


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """nnU-Net finds this checkout through nnUNet_extTrainer, and no installed copy of it."""

    def iter_modules(folders):
        return [] if Path(folders[0]) == INSTALLED else pkgutil.iter_modules(folders)

    monkeypatch.setattr(find_class_by_name, "pkgutil", SimpleNamespace(iter_modules=iter_modules))
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINER_CONFIGS))
    rule._combine.cache_clear()
    monkeypatch.setattr(rule, "_failed", {})
    yield
    rule._combine.cache_clear()


@pytest.fixture
def own_folder(monkeypatch, tmp_path) -> Path:
    """A user's folder of trainers, named in nnUNet_extTrainer behind the plugin's."""
    folder = tmp_path / "own_trainers"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_extTrainer", f"{TRAINER_CONFIGS}{os.pathsep}{folder}")
    return folder


IMPORTS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.trainer import MAPOTrainer, nnUNetTrainer_MAPO
"""


# What nnU-Net finds -------------------------------------------------------------------------------


def test_without_the_plugin_nothing_of_it_is_found(monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer")
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"):
        find("nnUNetTrainer_MAPO")


@pytest.mark.parametrize(
    ("name", "base", "config"),
    [
        ("nnUNetTrainer_MAPO", "nnUNetTrainer", MAPOConfig()),
        ("nnUNetTrainer_MAPO_NoPreference", "nnUNetTrainer", MAPOConfig(num_rounds=0)),
        ("nnUNetTrainer_MAPO_Paper", "nnUNetTrainer", PAPER),
        ("nnUNetTrainer_MAPO_FineTune", "nnUNetTrainer", FINE_TUNE),
        ("nnUNetTrainerDA5_MAPO_FineTune", "nnUNetTrainerDA5", FINE_TUNE),
        (
            "nnUNetTrainerDA5_MAPO_FineTune_NoPreference",
            "nnUNetTrainerDA5",
            replace(FINE_TUNE, num_rounds=0),
        ),
        ("nnUNetTrainerDA5_MAPO", "nnUNetTrainerDA5", MAPOConfig()),
        ("nnUNetTrainer_5epochs_MAPO", "nnUNetTrainer_5epochs", MAPOConfig()),
        ("nnUNet_Primus_M_Trainer_MAPO", "nnUNet_Primus_M_Trainer", MAPOConfig()),
        ("nnUNetTrainerDA5_MAPO_Paper", "nnUNetTrainerDA5", PAPER),
        ("nnUNetTrainerDA5_MAPO_NoPreference", "nnUNetTrainerDA5", MAPOConfig(num_rounds=0)),
    ],
)
def test_trainer_is_found_by_its_name(name, base, config):
    trainer = find(name)
    assert trainer.__name__ == name  # nnU-Net names the results folder after it
    assert trainer.mapo == config
    trainer.mapo.validate()
    order = [parent.__name__ for parent in trainer.__mro__]
    assert order.index("MAPOTrainer") < order.index(base)
    assert issubclass(trainer, MAPOTrainer)
    assert issubclass(trainer, nnUNetTrainer)


@pytest.mark.parametrize("name", ["nnUNetTrainerDA5_MAPO", "nnUNetTrainerDA5_MAPO_Paper"])
def test_a_combined_trainer_is_the_mixin_in_front_of_the_base(name):
    trainer = find(name)
    assert trainer.__bases__ == (MAPOTrainer, find("nnUNetTrainerDA5"))
    assert trainer.__init__ is find("nnUNetTrainerDA5").__init__
    assert find(name) is trainer  # the same class each time


def test_every_stock_trainer_is_still_found():
    for folder in Path(nnunetv2.__path__[0], "training", "nnUNetTrainer").rglob("*.py"):
        if INSTALLED in folder.parents or folder.stem == "__init__":
            continue
        for line in folder.read_text().splitlines():
            if line.startswith("class nnUNet"):
                name = line.removeprefix("class ").split("(")[0].rstrip(":")
                assert find(name).__name__ == name


# What is refused ----------------------------------------------------------------------------------


def test_an_unknown_base_is_named_and_a_close_name_suggested():
    with pytest.raises(RuntimeError) as error:
        find("nnUNetTrainerDA6_MAPO")
    message = str(error.value)
    assert "nnU-Net knows no trainer nnUNetTrainerDA6." in message
    assert "Did you mean" in message
    assert "nnUNetTrainerDA5" in message


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(RuntimeError, match="nnU-Net knows no trainer Qxyzzy") as error:
        find("Qxyzzy_MAPO")
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("base", ["nnUNetTrainer", "nnUNetTrainerDA5"])
def test_an_unknown_variant_is_named_with_those_there_are(base):
    with pytest.raises(RuntimeError) as error:
        find(f"{base}_MAPO_tau99")
    message = str(error.value)
    assert "there is no trainer nnUNetTrainer_MAPO_tau99" in message
    assert "nnUNetTrainer_MAPO_NoPreference" in message
    assert "nnUNetTrainer_MAPO_Paper" in message


@pytest.mark.parametrize("name", ["nnUNetTrainer_MAPO_MAPO", "nnUNetTrainerDA5_MAPO_MAPO"])
def test_mapo_twice_is_refused(name):
    with pytest.raises(RuntimeError, match="asks for the variant MAPO of MAPO"):
        find(name)


def test_mapo_on_top_of_a_trainer_that_has_it_already_is_refused(own_folder):
    (own_folder / "with_mapo.py").write_text(IMPORTS + "class Mine(nnUNetTrainer_MAPO):\n    pass")
    with pytest.raises(RuntimeError, match="Mine_MAPO"):
        find("Mine_MAPO")


@pytest.mark.parametrize(
    "name",
    ["nnUNetTrainer", "nnUNetTrainer_mapo", "MAPO", "_MAPO", "nnUNetTrainerMAPO", "X_MAPO_",
     "__path__", "__file__", "X_MAPOs", "a b_MAPO", ""],
)  # fmt: skip
def test_other_names_are_refused_at_once(monkeypatch, name):
    def search(_name):
        pytest.fail("nothing is to be searched")

    monkeypatch.setattr(rule, "_search", search)
    with pytest.raises(AttributeError, match="no trainer is called"):
        rule.find_trainer(name)


# A user's own trainers ----------------------------------------------------------------------------


def test_a_class_of_this_very_name_wins_over_the_rule(own_folder):
    (own_folder / "foo.py").write_text(
        IMPORTS + "class Foo_MAPO(MAPOTrainer, nnUNetTrainer):\n    mine = True"
    )
    assert find("Foo_MAPO").mine


def test_a_class_of_this_very_name_wins_even_if_the_base_exists(own_folder):
    (own_folder / "foo.py").write_text(
        IMPORTS + "class nnUNetTrainerDA5_MAPO(MAPOTrainer, nnUNetTrainer):\n    mine = True"
    )
    assert find("nnUNetTrainerDA5_MAPO").mine


def test_a_third_partys_trainer_is_a_base(own_folder):
    (own_folder / "umamba.py").write_text(
        IMPORTS + "class nnUNetTrainerUMambaBot(nnUNetTrainer):\n    third_party = True"
    )
    trainer = find("nnUNetTrainerUMambaBot_MAPO")
    assert trainer.third_party
    assert issubclass(trainer, MAPOTrainer)
    assert find("nnUNetTrainerUMambaBot_MAPO_Paper").mapo == PAPER


def test_a_users_variant_is_combined_with_every_base(own_folder):
    (own_folder / "tau.py").write_text(
        IMPORTS + "class nnUNetTrainer_MAPO_tau02(nnUNetTrainer_MAPO):\n"
        '    """A smaller gap."""\n\n    mapo = MAPOConfig(tau=0.2)'
    )
    assert find("nnUNetTrainer_MAPO_tau02").mapo == MAPOConfig(tau=0.2)
    assert find("nnUNetTrainerDA5_MAPO_tau02").mapo == MAPOConfig(tau=0.2)


def test_every_variant_has_its_control(own_folder):
    variant = (
        "\n\nclass nnUNetTrainer_MAPO_Mine(nnUNetTrainer_MAPO):\n    mapo = MAPOConfig(tau=0.2)\n"
    )
    (own_folder / "mine.py").write_text(IMPORTS + variant)
    for base in ("nnUNetTrainer", "nnUNetTrainerDA5"):
        control = find(f"{base}_MAPO_Mine_NoPreference")
        assert control.mapo == MAPOConfig(tau=0.2, num_rounds=0)
    shipped = find("nnUNetTrainerDA5_MAPO_FineTune_NoPreference")
    assert shipped.mapo == replace(FINE_TUNE, num_rounds=0)
    with pytest.raises(RuntimeError, match="no trainer nnUNetTrainer_MAPO_None_NoPreference"):
        find("nnUNetTrainer_MAPO_None_NoPreference")


def test_a_variant_with_methods_is_not_combined(own_folder):
    (own_folder / "stepping.py").write_text(
        IMPORTS + "class nnUNetTrainer_MAPO_Stepping(nnUNetTrainer_MAPO):\n"
        "    def train_step(self, batch):\n        return super().train_step(batch)"
    )
    assert find("nnUNetTrainer_MAPO_Stepping").__name__ == "nnUNetTrainer_MAPO_Stepping"
    with pytest.raises(RuntimeError, match=r"is more than its settings .*train_step"):
        find("nnUNetTrainerDA5_MAPO_Stepping")


class Settings(nnUNetTrainer_MAPO):
    """Only settings."""

    mapo: MAPOConfig = MAPOConfig(tau=0.2)


class Mixin:
    def train_step(self, batch):
        return super().train_step(batch)


@pytest.mark.parametrize(
    ("bases", "body", "more"),
    [
        ((nnUNetTrainer_MAPO,), {}, ""),
        ((Settings,), {"mapo": MAPOConfig(tau=0.3)}, ""),
        ((nnUNetTrainer_MAPO,), {"build": staticmethod(len)}, "it defines build"),
        (
            (nnUNetTrainer_MAPO,),
            {"folder": property(len), "epochs": 5},
            "it defines epochs, folder",
        ),
        ((nnUNetTrainer_MAPO,), {"__init__": len}, "it defines __init__"),
        ((type("Own", (Settings,), {"epochs": 5}),), {}, "it defines epochs"),
        ((MAPOTrainer, nnUNetTrainerDA5), {}, "it is no subclass of nnUNetTrainer_MAPO"),
        ((nnUNetTrainerDA5,), {}, "it is no subclass of nnUNetTrainer_MAPO"),
        ((nnUNetTrainer_MAPO, nnUNetTrainerDA5), {}, "it defines "),
        ((Mixin, Settings), {}, "it defines __dict__, __weakref__, train_step"),
    ],
)
def test_a_variant_is_only_settings_or_what_more_it_is(bases, body, more):
    found = rule.describe_more(type("Variant", bases, body))
    assert found.startswith(more) if more.endswith(" ") else found == more


# A clone with its scripts -------------------------------------------------------------------------

SCRIPTS = {
    "aa_mine.py": (IMPORTS + "class Mine(nnUNetTrainer):\n    third_party = True", ""),
    "convert.py": ("import unheard_of", "ModuleNotFoundError: No module named 'unheard_of'"),
    "half.py": ("def (", "SyntaxError: "),
    "quit.py": ("raise SystemExit(3)", "SystemExit: 3"),
    "setup.py": ("import argparse\nargparse.ArgumentParser().parse_args(['-x'])", "SystemExit: 2"),
    "train.py": ("import convert", "ModuleNotFoundError: No module named 'unheard_of'"),
    "package/__init__.py": ("1 / 0", "ZeroDivisionError: division by zero"),
    "package/a.py": ("", ""),
    "package/b.py": ("", ""),
    "zz_variant.py": (
        IMPORTS
        + "class nnUNetTrainer_MAPO_Late(nnUNetTrainer_MAPO):\n    mapo = MAPOConfig(tau=0.2)",
        "",
    ),
}


@pytest.fixture
def clone(own_folder):
    """A trainer and a variant among scripts that are not made to be imported."""
    (own_folder / "package").mkdir()
    for name, (text, _) in SCRIPTS.items():
        (own_folder / name).write_text(text)
    return own_folder


def test_files_that_cannot_be_imported_are_left_out_and_named_once(clone, capsys):
    assert find("Mine").third_party
    capsys.readouterr()
    trainer = find("Mine_MAPO_Late")
    assert trainer.third_party
    assert trainer.mapo == MAPOConfig(tau=0.2)
    find("Mine_MAPO_Late"), find("Mine_MAPO")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("MAPO: ")]
    expected = [
        f"MAPO: left out in the search: {clone / name} ({reason}"
        for name, (_, reason) in SCRIPTS.items()
        if reason
    ]
    assert len(told) == len(expected)
    for line, start in zip(sorted(told), sorted(expected), strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("name", ["Nowhere_MAPO", "Mine_MAPO_Nowhere"])
def test_what_is_not_found_may_be_in_a_file_that_could_not_be_imported(clone, name):
    with pytest.raises(RuntimeError) as error:
        find(name)
    _, listed = str(error.value).split("These files could not be imported: ")
    for file, (_, reason) in SCRIPTS.items():
        assert (f"{clone / file} ({reason}" in listed) == bool(reason)


def test_a_file_that_has_been_mended_is_listed_no_more(own_folder):
    (own_folder / "broken.py").write_text("raise RuntimeError('broken on purpose')")
    with pytest.raises(RuntimeError, match="broken on purpose"):
        find("Nowhere_MAPO")
    (own_folder / "broken.py").write_text("mended = True")
    with pytest.raises(RuntimeError) as error:
        find("Nowhere_MAPO")
    assert "could not be imported" not in str(error.value)


def test_a_class_of_this_very_name_behind_a_broken_file_wins(clone):
    (clone / "zz_own.py").write_text(
        IMPORTS + "class Mine_MAPO(MAPOTrainer, nnUNetTrainer):\n    mine = True"
    )
    assert find("Mine_MAPO").mine


def test_a_broken_module_of_nnunet_is_named_too(monkeypatch, capsys):
    name = "nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainerCosAnneal"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch.optim.lr_scheduler", None)  # which it imports
    rule.find_trainer("nnUNetTrainerDA5_MAPO")  # where nnU-Net has come to it
    told = capsys.readouterr().err
    assert "nnUNetTrainerCosAnneal.py (ModuleNotFoundError: import of torch.optim.lr" in told


def test_a_failed_search_does_not_disturb_the_next_one():
    with pytest.raises(RuntimeError):
        find("nnUNetTrainerDA6_MAPO")
    assert not rule._in_search
    assert find("nnUNetTrainerDA5_MAPO").__name__ == "nnUNetTrainerDA5_MAPO"


# Imports ------------------------------------------------------------------------------------------

IMPORT = """
import importlib, sys
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
before = set(sys.modules)
for name in names:
    importlib.import_module(name)
packages = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(packages - sys.stdlib_module_names - set(names)))
"""


def test_trainer_configs_import_nothing_that_nnunet_does_not():
    names = sorted(file.stem for file in TRAINER_CONFIGS.glob("*.py") if file.stem != "__init__")
    assert len(names) >= 4
    result = subprocess.run(
        [sys.executable, "-c", IMPORT, str(TRAINER_CONFIGS), *names],
        capture_output=True,
        text=True,
        check=True,
    )
    # nnunetv2: trainers of its own, which a search imports in any case
    assert result.stdout.split() == ["nnunetv2", "nnunetv2_mapo"]
