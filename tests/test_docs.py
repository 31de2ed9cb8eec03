"""Holds the documentation against the code."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import nnunetv2_mapo
from nnunetv2_mapo import MAPOConfig, MAPOTrainer
from nnunetv2_mapo.cli import build_parser
from nnunetv2_mapo.method.loss import STEP_KEYS
from nnunetv2_mapo.method.progress import MINING_KEYS, PLOT, VALIDATION_KEYS
from nnunetv2_mapo.method.reference import REFERENCE
from nnunetv2_mapo.method.store import MANIFEST, PREFERENCES, SampleRecord
from nnunetv2_mapo.tools.metrics import METRICS
from nnunetv2_mapo.zoo.networks import NETWORKS, PlannedUNet

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INDEX = ROOT / "docs" / "README.md"
HOW_TO_PAGES = ROOT / "docs" / "how-to"
REFERENCE_PAGES = ROOT / "docs" / "reference"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES]
)


def rows(page: Path) -> dict[str, list[str]]:
    """Cells of every table row by the first cell's code; the table has no pipes in its cells."""
    table = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and (name := re.fullmatch(r"`([^`]+)`", cells[0])):
            table[name[1]] = cells[1:]
    return table


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Text and target of each link and image."""
    text = without_code_blocks(page.read_text(encoding="utf-8"))
    # A badge is an image inside a link, so images lose their brackets first.
    for image in re.finditer(r"!\[([^\]]*)\]\(([^)\s]+)\)", text):
        yield image[1], image[2]
    text = re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", r"\1", text)
    for link in re.finditer(r"\[([^\]]*)\]\(([^)\s]+)\)", text):
        yield link[1], link[2]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings as GitHub makes them."""
    text = without_code_blocks(page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def python_blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def shipped_trainers() -> dict[str, type[MAPOTrainer]]:
    """Trainer classes of the checkout's `trainer_configs/`, by name."""
    found = {}
    for path in sorted((ROOT / "trainer_configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"shipped_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        found.update({c.__name__: c for c in classes if issubclass(c, MAPOTrainer)})
    return found


def sub_commands() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    [commands] = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
    return dict(commands.choices)


def evaluate(text: str) -> object:
    """Value of a literal in code quotes; a fraction of two numbers, such as `1 / 3`, too."""
    tree = ast.parse(text.strip("`"), mode="eval").body
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Div):
        return ast.literal_eval(tree.left) / ast.literal_eval(tree.right)
    return ast.literal_eval(tree)


# Trainers -----------------------------------------------------------------------------------------


def test_the_table_holds_every_shipped_trainer_and_no_other():
    table = rows(REFERENCE_PAGES / "trainers.md")
    assert {name for name in table if "_MAPO" in name and name[0] != "X"} == set(shipped_trainers())


def test_the_table_of_trainers_holds_the_rule():
    assert {"X_MAPO", "X_MAPO_V"} <= set(rows(REFERENCE_PAGES / "trainers.md"))


def test_documented_settings_of_each_trainer_are_the_real_ones():
    table = rows(REFERENCE_PAGES / "trainers.md")
    for name, trainer in shipped_trainers().items():
        pairs = re.findall(r"`(\w+)=([^`]+)`", table[name][-1])
        documented = {field: ast.literal_eval(value) for field, value in pairs}
        real, default = trainer.mapo, MAPOConfig()
        names = [field.name for field in fields(MAPOConfig)]
        different = {n: getattr(real, n) for n in names if getattr(real, n) != getattr(default, n)}
        assert documented == different, name


@pytest.mark.parametrize("page", [README, REFERENCE_PAGES / "trainers.md"], ids=lambda p: p.name)
def test_trainers_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"`(nnUNet\w*_MAPO\w*)`", text)) - {"nnUNetTrainer_MAPO_V"}
    assert len(names) >= 6
    for name in names:
        assert issubclass(recursive_find_trainer_class_by_name(name), MAPOTrainer), name


def test_the_page_of_monai_networks_has_each_of_them_and_its_multiple():
    table = rows(REFERENCE_PAGES / "networks-and-losses.md")
    assert list(table) == [f"nnUNetTrainer_{name}" for name in NETWORKS]
    planned = PlannedUNet([64, 64], [32, 64], [[3, 3]] * 2, [[1, 1], [2, 2]])
    for name, cells in zip(NETWORKS, table.values(), strict=True):
        [multiple] = set(NETWORKS[name](planned).rule.multiples)
        is_fixed = name not in ("DynUNet", "AttentionUnet")
        expected = str(multiple) if is_fixed else "the product of the strides"
        assert cells[-1].startswith(f"multiple of {expected}")


# Command line -------------------------------------------------------------------------------------


def test_the_index_names_every_sub_command():
    text = INDEX.read_text(encoding="utf-8")
    assert sub_commands()
    assert not [name for name in sub_commands() if f"nnUNetv2_mapo {name}" not in text]


def test_the_index_links_to_every_page():
    linked = {(INDEX.parent / target.partition("#")[0]).resolve() for _, target in links(INDEX)}
    pages = set((ROOT / "docs").rglob("*.md")) - {INDEX}
    assert not pages - linked


# Configuration ------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_real_default():
    table = rows(REFERENCE_PAGES / "configuration.md")
    documented = {name: evaluate(cells[0]) for name, cells in table.items()}
    assert documented == {field.name: field.default for field in fields(MAPOConfig)}


def test_every_choice_of_a_setting_is_documented():
    table = rows(REFERENCE_PAGES / "configuration.md")
    for field in fields(MAPOConfig):
        valid = table[field.name][1]
        if (choices := field.metadata["valid"].choices) and not valid.startswith("as `"):
            assert {evaluate(choice) for choice in valid.split(", ")} == set(choices)


@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_documented_schedule_is_the_real_one(num_dimensions):
    text = (REFERENCE_PAGES / "configuration.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"^\| {num_dimensions}D \| (.*) \|$", text, flags=re.MULTILINE)
    stages = MAPOConfig().schedule(1000, num_dimensions).stages
    assert row.split(" | ") == [f"{stage.first_epoch}–{stage.end_epoch - 1}" for stage in stages]


# Files and logged values --------------------------------------------------------------------------


def test_every_logged_key_is_documented():
    table = rows(REFERENCE_PAGES / "files.md")
    assert {name for name in table if "/" in name and name.islower()} == {
        *STEP_KEYS,
        *MINING_KEYS,
        *VALIDATION_KEYS,
    }


def test_every_written_file_is_documented():
    documented = set(rows(REFERENCE_PAGES / "files.md"))
    expected = {
        f"{PREFERENCES}/round_RR/CASE.b2nd",
        f"{PREFERENCES}/round_RR/{MANIFEST}",
        REFERENCE,
        PLOT,
        "checkpoint_*.pth",
    }
    assert expected <= documented


def test_every_entry_of_a_record_is_documented():
    text = (REFERENCE_PAGES / "files.md").read_text(encoding="utf-8")
    missing = [field.name for field in fields(SampleRecord) if f"`{field.name}`" not in text]
    assert not missing


def test_every_metric_is_documented():
    documented = [name for name in rows(HOW_TO_PAGES / "metrics.md") if name in METRICS]
    assert documented == list(METRICS)


# Links and named code -----------------------------------------------------------------------------


@each_page
def test_every_relative_link_leads_somewhere(page):
    broken = []
    for _, target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        destination = (page.parent / path).resolve() if path else page
        if not destination.exists() or (anchor and anchor not in anchors(destination)):
            broken.append(target)
    assert not broken


def code_references(page: Path) -> list[tuple[str, str]]:
    """Dotted name, and module with its package, of each link to a file of the package."""
    found = []
    for text, target in links(page):
        if path := re.search(r"(nnunetv2_mapo/[\w/]+)\.py$", target):
            found.append((text.strip("`"), path[1].replace("/", ".")))
    return found


@each_page
def test_every_named_function_exists(page):
    for name, path in code_references(page):
        module, *attributes = name.split(".")
        assert module == path.rpartition(".")[2], f"{name} links to {path}"
        assert attributes, f"{name} names no function or class"
        value: object = importlib.import_module(path)
        for attribute in attributes:
            assert hasattr(value, attribute), f"{name} does not exist"
            value = getattr(value, attribute)


def test_the_method_page_names_every_module_of_the_method():
    paths = [path for _, path in code_references(ROOT / "docs" / "method.md")]
    named = {path.rpartition(".")[2] for path in paths}
    assert named >= {
        "dropout",
        "loss",
        "mining",
        "reference",
        "sampling",
        "schedule",
        "selection",
        "store",
        "trainer",
    }


def test_the_method_page_names_only_real_settings():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    settings = re.findall(r"^\|[^|]*\|[^|]*\|([^|]*)\| \[`", text, flags=re.MULTILINE)
    named = {name for cell in settings for name in re.findall(r"`(\w+)`", cell)}
    assert {"tau", "beta", "lambda_supervised", "likelihood"} <= named
    assert named <= {field.name for field in fields(MAPOConfig)}


# Examples -----------------------------------------------------------------------------------------

PAGES_WITH_EXAMPLES = [page for page in PAGES if python_blocks(page)]


def test_pages_have_examples():
    names = {page.name for page in PAGES_WITH_EXAMPLES}
    assert {"your-own.md", "metrics.md", "networks-and-losses.md"} <= names


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=lambda page: page.name)
def test_nnunet_finds_the_trainers_of_the_examples(page, tmp_path, monkeypatch):
    for number, block in enumerate(python_blocks(page)):
        (tmp_path / f"example_{page.stem.replace('-', '_').lower()}_{number}.py").write_text(block)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    names = re.findall(r"^class (nnUNet\w+)", "\n".join(python_blocks(page)), flags=re.MULTILINE)
    found = [recursive_find_trainer_class_by_name(name) for name in names]
    variants = [trainer for trainer in found if issubclass(trainer, MAPOTrainer)]
    assert variants
    for trainer in variants:
        trainer.mapo.validate()
        assert trainer.mapo != MAPOConfig()


def test_the_first_variant_sets_tau_and_combines_with_other_trainers(tmp_path, monkeypatch):
    (tmp_path / "my_variant.py").write_text(python_blocks(HOW_TO_PAGES / "your-own.md")[0])
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    for name in ("nnUNetTrainer_MAPO_tau02", "nnUNetTrainerDA5_MAPO_tau02"):
        assert recursive_find_trainer_class_by_name(name).mapo == MAPOConfig(tau=0.2)


def test_the_first_variant_is_five_lines():
    assert len(python_blocks(HOW_TO_PAGES / "your-own.md")[0].splitlines()) == 5


# README -------------------------------------------------------------------------------------------


def test_the_readme_fits_in_70_lines():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 70
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "!["))] == []


# Version ------------------------------------------------------------------------------------------


def test_the_changelog_has_a_section_for_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(nnunetv2_mapo.__version__)}\]", text, flags=re.MULTILINE)


def test_the_house_in_contributing_has_the_floors_that_imports_keep():
    contract = re.search(r"^layers = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert contract
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    floors = [re.findall(r"│ (\w+)", line) for line in page.splitlines() if line.startswith("│")]
    assert [" | ".join(floor) for floor in floors] == ast.literal_eval(contract[1])
