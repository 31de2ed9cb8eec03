"""Every trainer that nnU-Net ships, with MAPO: found, initialised, and trained in each stage.

Run as a script, this prints the table of `docs/reference/trainers.md`.
"""

import inspect
import math
import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nnunetv2.training.nnUNetTrainer as package
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo import MAPOTrainer

PAGE = Path(__file__).parents[2] / "docs/reference/trainers.md"
DOCUMENTED_VERSION = "2.8.1"
HEAD = "| Folder | With MAPO | Trainers of nnunetv2 {version} |\n|---|---|---|"
# A part of the name -> what is said when it fails, and why, for the table.
CANNOT = {
    "Benchmark": (
        "This only works on GPU",
        "not tested: a benchmark of the GPU, which does not start without one",
    ),
    "Adan": (
        "requires adan_pytorch",
        "not tested: nnU-Net does not install `adan-pytorch`, which it needs",
    ),
}
LARGE = "works (a test of minutes, not part of every run)"
pytestmark = pytest.mark.filterwarnings(  # all from nnU-Net's own code
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:Mean of empty slice:RuntimeWarning",
    "ignore:.*lr_scheduler.step:UserWarning",
    "ignore:The epoch parameter in:UserWarning",
    "ignore:size_average and reduce:UserWarning",
)


def find_stock_trainers() -> dict[str, type]:
    """nnU-Net's own trainers by name, in the order of its folders; no abstract ones."""
    found = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if ".mapo" in module.name:
            continue
        for name, member in inspect.getmembers(import_module(module.name), inspect.isclass):
            is_own = member.__module__ == module.name and issubclass(member, nnUNetTrainer)
            if is_own and not issubclass(member, MAPOTrainer) and not name.startswith("Abstract"):
                found[name] = member
    return found


def find_reason(name: str) -> tuple[str, str] | None:
    return next((reason for part, reason in CANNOT.items() if part in name), None)


def make_table() -> str:
    """The table of the documentation: a row for trainers of one folder with the same outcome."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, trainer in find_stock_trainers().items():
        place = trainer.__module__.removeprefix(f"{package.__name__}.").rpartition(".")[0] or "."
        reason = find_reason(name)
        works = LARGE if is_large(name) else "works"
        rows.setdefault((place, reason[1] if reason else works), []).append(f"`{name}`")
    lines = [f"| `{place}` | {works} | {', '.join(rows[place, works])} |" for place, works in rows]
    return "\n".join((HEAD.format(version=DOCUMENTED_VERSION), *lines, ""))


def is_large(name: str) -> bool:
    """Whether the network, or the patch that the trainer sets, takes minutes on a CPU."""
    return re.search(r"Primus.*(B|M|L)_|_BS1", name) is not None


def with_marks(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow if is_large(name) else ())


@pytest.mark.parametrize("name", [with_marks(name) for name in find_stock_trainers()])
def test_stock_trainer_with_mapo(make_trainer: Callable[..., Any], name: str) -> None:
    reason = find_reason(name)
    if reason and not (name.startswith("nnUNetTrainerAdan") and find_spec("adan_pytorch")):
        with pytest.raises((AssertionError, RuntimeError), match=reason[0]):
            make_trainer(f"{name}_MAPO_tiny").initialize()
        return
    trainer = make_trainer(f"{name}_MAPO_tiny", fold=1)  # a single training case
    trainer.num_epochs = trainer.num_iterations_per_epoch = 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert isinstance(trainer, find_stock_trainers()[name])
    assert isinstance(trainer, MAPOTrainer)
    assert [stage.round for stage in trainer.schedule.stages] == [0, 1]
    assert trainer._summary.num_samples == 1
    assert math.isfinite(trainer.logger.get_value("train_losses", -1))


def test_the_table_lists_every_trainer() -> None:
    if version("nnunetv2") != DOCUMENTED_VERSION:
        pytest.skip(f"the table is about nnunetv2 {DOCUMENTED_VERSION}")
    assert make_table() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(make_table(), end="")
