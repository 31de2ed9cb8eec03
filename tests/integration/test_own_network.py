"""The network of `docs/how-to/own-network.md`, trained with MAPO as its reader would."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs/how-to/own-network.md"
pytestmark = pytest.mark.filterwarnings(  # all from nnU-Net's own code
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:Mean of empty slice:RuntimeWarning",
)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_network_of_the_page_is_trained_with_mapo(
    make_trainer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configuration: str,
) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "my_unet.py").write_text(block)
    folders = [str(tmp_path), os.environ["nnUNet_extTrainer"]]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(folders))

    trainer = make_trainer("nnUNetTrainerMyUNet_MAPO_tiny", configuration, fold=1)
    trainer.num_epochs = trainer.num_iterations_per_epoch = 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    trainer.perform_actual_validation()

    assert type(trainer.network).__name__ == "MyUNet"
    assert trainer._summary.num_pairs > 0
    assert math.isfinite(trainer.logger.get_value("loss/dpo", -1))
    [log] = Path(trainer.output_folder).glob("training_log*.txt")
    assert "dropout after 17 layers" in log.read_text()  # the page says so
    assert "head" not in trainer.dropout.sites
    assert list(Path(trainer.output_folder, "validation").glob("*.nii.gz"))
