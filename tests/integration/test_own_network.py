"""The networks of `docs/how-to/your-own.md`, trained with MAPO as its reader would."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs/how-to/your-own.md"
pytestmark = pytest.mark.filterwarnings(  # all from nnU-Net's own code
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:Mean of empty slice:RuntimeWarning",
)


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for its_language, block in found if its_language == language]


@pytest.mark.parametrize(
    ("trainer_name", "sites"),
    [
        ("nnUNetTrainerTheirs", ["body.0", "body.3"]),
        ("nnUNetTrainerTheirsDeep", ["stages.0", "stages.1", "stages.2"]),
        ("nnUNetTrainerTheirsSigmoid", ["network.stem", "network.body"]),
    ],
)
def test_the_networks_of_the_page_are_trained_with_mapo(
    make_trainer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trainer_name: str,
    sites: list[str],
) -> None:
    [block] = [each for each in blocks("python") if f"class {trainer_name}(" in each]
    (tmp_path / "my_network.py").write_text(block)
    folders = [str(tmp_path), os.environ["nnUNet_extTrainer"]]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(folders))

    trainer = make_trainer(f"{trainer_name}_MAPO_tiny", "2d", fold=1)
    trainer.num_epochs = trainer.num_iterations_per_epoch = 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    trainer.perform_actual_validation()

    assert list(trainer.dropout.sites) == sites
    assert trainer._summary.num_pairs > 0
    assert math.isfinite(trainer.logger.get_value("loss/dpo", -1))
    assert list(Path(trainer.output_folder, "validation").glob("*.nii.gz"))


def test_the_table_of_the_page_is_what_its_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [command] = [block for block in blocks("sh") if block.startswith("python -c")]
    [table] = blocks("")
    exec(command.split('"')[1], {})
    assert capsys.readouterr().out == table
