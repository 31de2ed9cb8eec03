"""Fine-tuning a finished training of the base trainer, and the checkpoints that it refuses."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from boxes import DATASET
from test_distributed import run_ranks
from test_training import read_log, stop_in_epoch

from nnunetv2_mapo.guards.base_checkpoint import VARIABLE, BaseError
from nnunetv2_mapo.guards.fine_tuning import find_label_weights
from nnunetv2_mapo.support.files import hash_weights

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
BASE, FINE_TUNED = "nnUNetTrainerTiny", "nnUNetTrainerTiny_MAPO_tinytune"
FINAL = "checkpoint_final.pth"


@pytest.fixture(scope="module")
def finished(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a finished and validated training of the base trainer."""
    from nnunetv2.run.run_training import run_training
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        patch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
        run_training(DATASET, "3d_fullres", 0, BASE, device=torch.device("cpu"))
    return folder


@pytest.fixture
def base(finished: Path, tmp_path: Path) -> Path:
    """The same, copied into this test's results folder; its checkpoint."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / DATASET / f"{BASE}__nnUNetPlans__3d_fullres/fold_0" / FINAL


def stop_before_the_first_step(trainer: Any) -> None:
    stop_in_epoch(trainer, epoch=0)


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return trainer.network.state_dict()


def change(path: Path, **changes: Any) -> Path:
    """Another checkpoint beside a checkpoint, with other plans, labels, fold or weights."""
    content = torch.load(path, weights_only=False)
    arguments = content["init_args"]
    for key in ("dataset_name", *arguments["plans"]):
        if key in changes:
            arguments["plans"][key] = changes[key]
    if "labels" in changes:
        arguments["dataset_json"]["labels"] = changes["labels"]
    arguments["fold"] = changes.get("fold", arguments["fold"])
    if "configuration" in changes:
        arguments["plans"]["configurations"]["3d_fullres"].update(changes["configuration"])
    content["network_weights"] = changes.get("weights", content["network_weights"])
    changed = path.with_name("changed.pth")
    torch.save(content, changed)
    return changed


@pytest.mark.parametrize("name", [FINE_TUNED, f"{BASE}_MAPO_FineTune"])
def test_it_starts_from_every_weight_of_the_base_trainer_s_model(
    make_trainer: MakeTrainer, base: Path, name: str
) -> None:
    trainer = make_trainer(name)
    stop_before_the_first_step(trainer)
    expected = torch.load(base, weights_only=False)["network_weights"]
    assert any("seg_layers" in key for key in expected)
    assert hash_weights(weights_of(trainer)) == hash_weights(expected)
    assert f"MAPO: fine-tuning {base} ({BASE}, {DATASET}, fold 0, 6 epochs)" in read_log(trainer)


def test_it_has_its_own_length_and_learning_rate(make_trainer: MakeTrainer, base: Path) -> None:
    trainer = make_trainer(FINE_TUNED)
    stop_before_the_first_step(trainer)
    assert trainer.num_epochs == 3  # half of 6
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)  # a tenth of 0.01
    assert trainer.optimizer.state == {}


def test_the_model_that_it_starts_from_is_not_overwritten(
    make_trainer: MakeTrainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(make_trainer(FINE_TUNED).output_folder) / FINAL
    own.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(base, own)
    monkeypatch.setenv(VARIABLE, str(own))
    with pytest.raises(BaseError, match=r"is what this training would overwrite\. Let nnUNet_res"):
        make_trainer(FINE_TUNED).run_training()
    assert own.read_bytes() == base.read_bytes()


def test_checkpoints_say_where_the_weights_come_from(make_trainer: MakeTrainer, base: Path) -> None:
    trainer = make_trainer(FINE_TUNED)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    origin = torch.load(folder / FINAL, weights_only=False)["mapo"]["base"]
    weights = torch.load(base, weights_only=False)["network_weights"]
    assert origin == {
        "path": str(base), "trainer": BASE, "dataset": DATASET, "plans": "nnUNetPlans",
        "configuration": "3d_fullres", "fold": 0, "num_epochs": 6, "heads": "kept",
        "weights": hash_weights(weights), "base": None,
    }  # fmt: skip
    assert (folder / "preferences/round_02/manifest.json").is_file()


def test_a_continued_fine_tuning_does_not_need_the_base_any_more(
    make_trainer: MakeTrainer, base: Path
) -> None:
    trainer = make_trainer(FINE_TUNED)
    trainer.save_every = 1
    stop_in_epoch(trainer, epoch=2)
    shutil.rmtree(base.parents[1])
    continued = make_trainer(FINE_TUNED, continue_training=True)
    continued.run_training()
    assert "continued after 2 epochs" in read_log(continued)
    final = torch.load(Path(continued.output_folder) / FINAL, weights_only=False)
    assert final["mapo"]["base"]["path"] == str(base)


def test_fold_all_starts_from_any_fold_that_is_named(
    make_trainer: MakeTrainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(base))
    trainer = make_trainer(FINE_TUNED, fold="all")
    stop_before_the_first_step(trainer)
    expected = torch.load(base, weights_only=False)["network_weights"]
    assert hash_weights(weights_of(trainer)) == hash_weights(expected)


def test_two_ranks_start_from_the_base(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "ranks/results")
    first, second = run_ranks(tmp_path / "ranks", FINE_TUNED, "train")
    assert first["weights"] == second["weights"]
    log = "".join(path.read_text() for path in (tmp_path / "ranks").rglob("training_log*.txt"))
    assert "MAPO: fine-tuning " in log


# Another data set --------------------------------------------------------------------------------


def test_another_data_set_with_the_same_labels_keeps_the_heads(
    make_trainer: MakeTrainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its fold does not matter: its cases are others.
    path = change(base, dataset_name="Dataset991_Other", fold=3)
    monkeypatch.setenv(VARIABLE, str(path))
    trainer = make_trainer(FINE_TUNED)
    stop_before_the_first_step(trainer)
    expected = torch.load(path, weights_only=False)["network_weights"]
    assert hash_weights(weights_of(trainer)) == hash_weights(expected)
    assert "heads start anew" not in read_log(trainer)


def test_other_labels_start_with_new_heads_and_a_notice(
    make_trainer: MakeTrainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.load(base, weights_only=False)["network_weights"]
    fewer = {
        name: tensor[:2] if "seg_layers" in name else tensor for name, tensor in weights.items()
    }
    labels = {"background": 0, "organ": 1}
    path = change(base, dataset_name="Dataset991_Other", labels=labels, weights=fewer)
    monkeypatch.setenv(VARIABLE, str(path))
    trainer = make_trainer(FINE_TUNED)
    stop_before_the_first_step(trainer)
    changed = {
        name
        for name, tensor in weights_of(trainer).items()
        if not torch.equal(tensor, weights[name])
    }
    heads = {name for name in weights if "seg_layers" in name}
    assert {name for name in heads if name.endswith("weight")} <= changed <= heads
    log = read_log(trainer)
    assert f"start anew, {len(heads)} weights: {', '.join(sorted(heads))}" in log
    assert "its labels are {'background': 0, 'organ': 1}, those of this training" in log
    assert "the segmentation heads start anew" in log


def test_heads_are_the_weights_that_depend_on_the_number_of_labels(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(FINE_TUNED)
    trainer.initialize()
    heads = {name for name in weights_of(trainer) if "seg_layers" in name}
    assert find_label_weights(trainer, trainer._plain_network()) == heads


# What it refuses ---------------------------------------------------------------------------------


def refuse(trainer: Any, message: str) -> None:
    with pytest.raises(BaseError, match=message):
        trainer.run_training()


def test_no_finished_model_of_the_base_trainer(make_trainer: MakeTrainer, base: Path) -> None:
    base.rename(base.with_name("checkpoint_latest.pth"))
    missing = re.escape(f"fine-tunes {BASE}, but {base} is missing. Finished folds there: none")
    refuse(make_trainer(FINE_TUNED), missing)
    command = f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr {BASE} -p nnUNetPlans"
    refuse(make_trainer(FINE_TUNED), command)


def test_the_model_of_another_fold_is_never_taken(
    make_trainer: MakeTrainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(make_trainer(FINE_TUNED, fold=1), "Finished folds there: fold_0; another fold's model")
    monkeypatch.setenv(VARIABLE, str(base))
    refuse(make_trainer(FINE_TUNED, fold=1), "is of fold 0 of the same data set")
    monkeypatch.setenv(VARIABLE, str(change(base, fold="all")))
    refuse(make_trainer(FINE_TUNED), "is of fold all of the same data set")


def test_a_split_that_has_changed_since_the_base_was_trained(
    make_trainer: MakeTrainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = base.parent / "validation/summary.json"
    summary.write_text(summary.read_text().replace("case_5", "case_0"))
    message = f"1 validation cases of this fold, such as case_5, were not when {base} was trained"
    refuse(make_trainer(FINE_TUNED), message)
    monkeypatch.setenv(VARIABLE, str(base))  # who names it may know that the case is a new one
    trainer = make_trainer(FINE_TUNED)
    stop_before_the_first_step(trainer)
    assert f"WARNING: {message}" in read_log(trainer)


def test_a_refused_start_deletes_nothing(make_trainer: MakeTrainer, base: Path) -> None:
    trainer = make_trainer(FINE_TUNED)
    stop_in_epoch(trainer, epoch=2)
    base.unlink()
    refuse(make_trainer(FINE_TUNED), "is missing")
    assert (Path(trainer.output_folder) / "preferences/round_01/manifest.json").is_file()
    assert (Path(trainer.output_folder) / "reference.pth").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configuration": {"spacing": [2, 1, 1]}}, r"spacing is \[2, 1, 1\] there, \[1.0, 1.0"),
        (
            {"configuration": {"normalization_schemes": ["CTNormalization"]}},
            r"normalization is \['CTNormalization'\] there, \['ZScoreNormalization'\] here",
        ),
        ({"transpose_forward": [2, 1, 0]}, r"transpose_forward is \[2, 1, 0\] there"),
    ],
    ids=["spacing", "normalization", "axes"],
)
def test_other_plans(
    make_trainer: MakeTrainer,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv(VARIABLE, str(change(base, **changes)))
    refuse(make_trainer(FINE_TUNED), f"trained on other images: {message}.*nnUNetv2_move_plans")


def test_another_network(
    make_trainer: MakeTrainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.load(base, weights_only=False)["network_weights"]
    name = next(iter(weights))
    weights[name] = weights[name][:1]
    monkeypatch.setenv(VARIABLE, str(change(base, weights=weights)))
    message = rf"{re.escape(name)} is \(1, 1, 3, 3, 3\) there, \(4, 1, 3, 3, 3\) in the network"
    refuse(make_trainer(FINE_TUNED), f"{message}.*Use the trainer, plans and configuration")


def test_files_that_are_no_checkpoint(
    make_trainer: MakeTrainer, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged, foreign = tmp_path / "damaged.pth", tmp_path / "foreign.pth"
    damaged.write_bytes(base.read_bytes()[:1000])
    torch.save({"network_weights": {}, "current_epoch": 1}, foreign)
    for path, message in {
        base.parent: r"is no file. Checkpoints there: checkpoint_best.pth, checkpoint_final.pth\.",
        base.with_name("x.pth"): "is no file. Checkpoints there: checkpoint_best.pth",
        damaged: "is damaged or no checkpoint of an nnU-Net training",
        foreign: "does not say how it was trained",
    }.items():
        monkeypatch.setenv(VARIABLE, str(path))
        refuse(make_trainer(FINE_TUNED), f"{re.escape(str(path))} {message}")


def test_pretrained_weights_besides(make_trainer: MakeTrainer, base: Path) -> None:
    trainer = make_trainer(FINE_TUNED)
    trainer.initialize()  # as nnU-Net does before it loads them
    refuse(trainer, "-pretrained_weights has no place here")


def test_a_named_checkpoint_that_is_not_used_is_said(
    make_trainer: MakeTrainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(base))
    trainer = make_trainer("nnUNetTrainerTiny_MAPO_tiny")
    stop_before_the_first_step(trainer)
    expected = f"nnUNetTrainerTiny_MAPO_tiny does not fine-tune: {VARIABLE} is not used"
    assert expected in read_log(trainer)
