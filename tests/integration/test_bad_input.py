"""What a user may get wrong; each case asserts the message. Settings are in `test_config.py`."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boxes import DATASET
from nnunetv2.run.run_training import maybe_load_checkpoint, run_training
from prepare import draw_boxes, prepare, write_dataset
from test_training import stop_in_epoch

from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO
from nnunetv2_mapo.support.errors import InputError

MakeTrainer = Callable[..., Any]
NAME = "nnUNetTrainerTiny_MAPO_tiny"

NAMES = {
    "nnUNetTrainerTiny_MAPO_MAPO": "no trainer nnUNetTrainer_MAPO_MAPO",
    "nnUNetTrainer_MAPO_Tau": "nnUNetTrainer_MAPO_Paper, ",
    "nnUNetTrainerDA5_MAPO_Tau": "asks for the variant Tau of MAPO",
    "nnUNetTrainer_MAPO_tiny_MAPO": "variant tiny_MAPO of MAPO",
    "nnUNetTrainerDA6_MAPO": "Did you mean nnUNetTrainerDA5",
    "nnUNetTrainer_250epoch_MAPO": "Did you mean nnUNetTrainer_250epochs",
    "Nothing_MAPO": "nnU-Net knows no trainer Nothing",
    "Nothing_MAPO_NoPreference": "nnU-Net knows no trainer Nothing",
    "nnUNetTrainer_mapo": "Could not find requested nnunet trainer nnUNetTrainer_mapo",
    "nnUNetTrainer-MAPO": "Could not find requested nnunet trainer nnUNetTrainer-MAPO",
    "_MAPO": "Could not find requested nnunet trainer _MAPO",
    "nnUNetTrainer_MAPO_": "Could not find requested nnunet trainer nnUNetTrainer_MAPO_",
}


@pytest.mark.parametrize(("name", "message"), NAMES.items(), ids=NAMES)
def test_a_wrong_trainer_name(make_trainer: MakeTrainer, name: str, message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        make_trainer(name)
    assert message in str(error.value)


@pytest.mark.parametrize("configuration", ["3d_lowres", "3D_fullres", "2D", ""])
def test_a_configuration_that_the_plans_do_not_have(
    make_trainer: MakeTrainer, configuration: str
) -> None:
    with pytest.raises(RuntimeError, match=r"Available configurations: \['2d', '3d_fullres'\]"):
        make_trainer(configuration=configuration)


@pytest.mark.parametrize("mapo", [{"tau": 0.1}, MAPOConfig, None, 0.1], ids=str)
def test_settings_that_are_no_configuration(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mapo: Any
) -> None:
    monkeypatch.setattr(nnUNetTrainer_MAPO, "mapo", mapo)
    with pytest.raises(
        TypeError, match=r"nnUNetTrainer_MAPO\.mapo is .*: a MAPOConfig\(…\) is needed"
    ):
        make_trainer("nnUNetTrainer_MAPO")
    assert not list(tmp_path.iterdir())


def test_a_warmup_longer_than_the_training(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnUNetTrainer_MAPO, "mapo", MAPOConfig(warmup_epochs=1000))
    with pytest.raises(ValueError, match="warmup_epochs=1000 leaves no epoch for preferences"):
        make_trainer("nnUNetTrainer_MAPO").run_training()


# Folds and splits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [-1, -5])
def test_a_negative_fold(make_trainer: MakeTrainer, fold: int) -> None:
    with pytest.raises(InputError, match=f"fold {fold} is not valid: 0, 1, 2 .* or 'all'"):
        make_trainer(fold=fold).run_training()


@pytest.mark.parametrize("fold", ["five", "0.5", "ALL"])
def test_a_fold_that_is_no_number(boxes: Path, fold: str, capsys: Any) -> None:
    with pytest.raises(ValueError):
        run_training(DATASET, "3d_fullres", fold, NAME, device=torch.device("cpu"))
    assert f"Unable to convert given value for fold to int: {fold}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": [], "val": ["case_0"]}, "This fold has no training case. See .*splits_final"),
        ({"train": ["case_0"], "val": []}, "This fold has no validation case. See .*splits_final"),
        (
            {"train": ["case_0", "case_77"], "val": ["case_1"]},
            r"1 training cases of this fold are not among the preprocessed cases: \['case_77'\]",
        ),
        (
            {"train": ["case_0"], "val": ["a", "b"]},
            r"2 validation cases of this fold are not among .*: \['a', 'b'\]",
        ),
    ],
    ids=["no training", "no validation", "unknown training", "unknown validation"],
)
def test_a_split_that_cannot_be_trained(
    make_trainer: MakeTrainer, boxes: Path, split: dict[str, list[str]], message: str
) -> None:
    splits_file = boxes / "preprocessed" / DATASET / "splits_final.json"
    before = splits_file.read_text()
    try:
        splits_file.write_text(json.dumps([split]))
        with pytest.raises(InputError, match=message):
            make_trainer().run_training()
    finally:
        splits_file.write_text(before)


# Checkpoints --------------------------------------------------------------------------------------


@pytest.fixture
def stopped(make_trainer: MakeTrainer) -> Path:
    """Folder of a training that was stopped in its first round."""
    trainer = make_trainer()
    stop_in_epoch(trainer, epoch=2)
    return Path(trainer.output_folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_checkpoint(make_trainer: MakeTrainer, stopped: Path, share: float) -> None:
    latest = stopped / "checkpoint_latest.pth"
    content = latest.read_bytes()
    latest.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"checkpoint_latest\.pth is damaged .* Delete or move it"):
        make_trainer(continue_training=True)
    latest.unlink()  # as it says
    make_trainer(continue_training=True).run_training()


def test_a_checkpoint_with_a_flipped_bit_in_a_weight(
    make_trainer: MakeTrainer, stopped: Path
) -> None:
    latest = stopped / "checkpoint_latest.pth"
    weights = torch.load(latest, weights_only=False)["network_weights"]
    content = bytearray(latest.read_bytes())
    largest = max(weights.values(), key=torch.numel)
    content[content.index(largest.numpy().tobytes()) + 5] ^= 1
    latest.write_bytes(content)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        make_trainer(continue_training=True)


@pytest.mark.parametrize(
    "content", [{}, {"network_weights": {}}, [1, 2], {"state_dict": {}}, None], ids=str
)
def test_a_file_that_is_no_checkpoint(
    make_trainer: MakeTrainer, stopped: Path, content: Any
) -> None:
    torch.save(content, stopped / "checkpoint_latest.pth")
    with pytest.raises(ValueError, match="is damaged or no checkpoint of an nnU-Net training"):
        make_trainer(continue_training=True)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"configuration": "2d"}, r"is \(.*\) there, \(.*\) in the network"),
        ({"plans": "resenc"}, "it has no "),
    ],
    ids=["configuration", "network"],
)
def test_a_checkpoint_of_another_network(
    make_trainer: MakeTrainer, stopped: Path, other: dict[str, str], message: str
) -> None:
    with pytest.raises(
        ValueError, match="holds the weights of another network than the one of"
    ) as error:
        make_trainer(**other).load_checkpoint(str(stopped / "checkpoint_latest.pth"))
    error.match(message)
    error.match("Use the trainer, plans, configuration and data set that it was trained with")


def test_a_checkpoint_of_other_labels(make_trainer: MakeTrainer, stopped: Path) -> None:
    trainer = make_trainer()
    trainer.label_manager._all_labels.append(3)
    trainer.label_manager.foreground_labels.append(3)
    with pytest.raises(
        ValueError, match=r"seg_layers.* is \(3, .*\) there, \(4, .*\) in the network"
    ):
        trainer.load_checkpoint(str(stopped / "checkpoint_latest.pth"))


def test_pretrained_weights_of_another_network(make_trainer: MakeTrainer, stopped: Path) -> None:
    with pytest.raises(AssertionError, match=r"not compatible|shape"):
        maybe_load_checkpoint(
            make_trainer(configuration="2d"),
            continue_training=False,
            validation_only=False,
            pretrained_weights_file=str(stopped / "checkpoint_latest.pth"),
        )


# Folders and data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nnUNet_preprocessed", "nnUNet_results"])
def test_an_environment_variable_that_is_not_set(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(RuntimeError, match=f"{name} is not defined"):
        make_trainer().run_training()


def test_a_results_folder_that_cannot_be_written(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file"))
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        make_trainer()


def test_a_configuration_that_is_not_preprocessed(make_trainer: MakeTrainer, boxes: Path) -> None:
    folder = boxes / "preprocessed" / DATASET / "nnUNetPlans_2d"
    folder.rename(folder.with_name("moved"))
    try:
        with pytest.raises(
            InputError, match=f"{DATASET} is not preprocessed for 2d: .*nnUNetPlans_2d"
        ):
            make_trainer(configuration="2d").run_training()
    finally:
        folder.with_name("moved").rename(folder)


@pytest.fixture(scope="session")
def single(nnunet_folder: Path) -> str:
    """A data set of a single case."""
    name = "Dataset985_Single"
    segmentation = draw_boxes(np.random.default_rng(0))
    write_dataset(nnunet_folder, name, {"background": 0, "a": 1, "b": 2}, [segmentation])
    prepare(nnunet_folder, name, {"3d_fullres": (8, 16, 16)}, num_training=1)
    (nnunet_folder / "preprocessed" / name / "splits_final.json").unlink()
    return name


def test_a_data_set_of_one_case(make_trainer: MakeTrainer, single: str) -> None:
    with pytest.raises(
        InputError, match=r"needs 5 cases; there are 1: \['case_0'\]. Train fold 'all'"
    ):
        make_trainer(dataset=single).run_training()
    trainer = make_trainer(dataset=single, fold="all")  # as it says
    trainer.run_training()
    assert trainer.current_epoch == 6


def test_no_training_case_with_foreground(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    folder = boxes / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres"
    shutil.copytree(folder, tmp_path / "kept")
    for path in folder.glob("*.pkl"):
        properties = pickle.loads(path.read_bytes())
        properties["class_locations"] = {1: [], 2: np.zeros((0, 4))}
        path.write_bytes(pickle.dumps(properties))
    try:
        with pytest.raises(InputError, match="None of the 4 training cases has a voxel of any"):
            make_trainer().run_training()
    finally:
        shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)
