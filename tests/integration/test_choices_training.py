"""Trainings that learn from experts' choices on images without outlines."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices_folder import GOOD, NOTHING, make_candidates, write_choices
from test_training import read_log, stop_in_epoch

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.method.choices import (
    EQUAL,
    IMAGES,
    MODEL,
    RECORD,
    UNUSABLE,
    VARIABLE,
    ChoicesError,
    append_answer,
    append_undo,
    read_answers,
)
from nnunetv2_mapo.method.store import WEIGHT_ONE

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
TINY = "nnUNetTrainerTiny"
FROM_SCRATCH, CHOSEN, PSEUDO = (
    f"{TINY}_MAPO_tiny{name}" for name in ("choices", "chosen", "pseudo")
)


@pytest.fixture
def make_choices(make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a folder of choices, which the environment names."""

    def make(configuration: str = "3d_fullres", **arguments: Any) -> Path:
        trainer = make_trainer(TINY, configuration)
        trainer.initialize()
        monkeypatch.setenv(VARIABLE, str(tmp_path / "choices"))
        checkpoint = Path(trainer.output_folder) / "checkpoint_final.pth"
        return write_choices(tmp_path / "choices", trainer, checkpoint, **arguments)

    return make


def logged(trainer: Any, key: str) -> list[float]:
    return trainer.logger.local_logger.my_fantastic_logging[key]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_choices_are_learnt_from_after_the_warm_up(
    make_trainer: MakeTrainer, make_choices: Any, configuration: str
) -> None:
    folder = make_choices(configuration)
    trainer = make_trainer(FROM_SCRATCH, configuration)
    trainer.run_training()
    log = read_log(trainer)
    assert f"2 answers by ada (2 choice) in {folder / RECORD}; 2 of 2 images are used" in log
    assert "mining" not in log
    losses = np.array(logged(trainer, "loss/dpo"))
    assert np.isnan(losses[:2]).all()
    assert (losses[2:] > 0).all()
    assert logged(trainer, "rewards/margins")[-1] > 0  # it has come to prefer what was chosen
    content = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert content["mapo"]["choices"]["num_answers"] == 2
    model = Path(trainer.output_folder).parent
    assert main(["report", str(model)]) == 0
    words = f"2 images without outlines and 2 answers of experts in {folder} it learnt preferences"
    assert words in (model / "report.html").read_text()


@pytest.mark.parametrize("name", [CHOSEN, PSEUDO])
def test_controls_take_a_candidate_for_an_outline(
    make_trainer: MakeTrainer, make_choices: Any, name: str
) -> None:
    make_choices()
    trainer = make_trainer(name)
    labels = []
    attach = trainer.__class__._unlabelled_loss

    def spy(self: Any, base: Any) -> Any:
        loader = self._unlabelled_loader
        batch = next(loader)
        labels.append(batch["target"])
        self._unlabelled_loader = iter([batch])
        loss = attach(self, base)
        self._unlabelled_loader = loader
        assert loss.requires_grad
        return loss

    trainer.__class__._unlabelled_loss = spy
    try:
        trainer.run_training()
    finally:
        trainer.__class__._unlabelled_loss = attach
    assert len(labels) == 4 * 3 + 1  # steps of 4 epochs, and the rehearsed one
    assert all(isinstance(target, list) and len(target) == 2 for target in labels)
    assert trainer._reference is None
    assert np.isnan(logged(trainer, "loss/dpo")).all()
    assert np.isfinite(logged(trainer, "loss/supervised")).all()


def test_stacks_hold_what_was_said(make_trainer: MakeTrainer, make_choices: Any) -> None:
    make_choices()
    trainer = make_trainer(FROM_SCRATCH)
    stop_in_epoch(trainer, epoch=0)
    images = trainer._unlabelled
    assert list(images.places) == ["new_case_4", "new_case_5"]
    candidates = images.dataset.load_case("new_case_4")[1][:]
    plain, chosen, rejected, weight = images.stacks.open_stack("new_case_4")[:]
    differs = candidates[GOOD] != candidates[NOTHING]
    np.testing.assert_array_equal(plain, candidates[0])
    np.testing.assert_array_equal(chosen, candidates[GOOD])
    np.testing.assert_array_equal(rejected, candidates[NOTHING])
    np.testing.assert_array_equal(weight, WEIGHT_ONE * differs)
    channel, *place = images.places["new_case_4"].T
    assert not channel.any()
    assert differs[tuple(place)].all()


def test_half_of_a_batch_is_unlabelled_and_the_labelled_half_carries_nothing(
    make_trainer: MakeTrainer, make_choices: Any
) -> None:
    make_choices()
    trainer = make_trainer(FROM_SCRATCH)
    stop_in_epoch(trainer, epoch=2)
    labelled, unlabelled = next(trainer.dataloader_train), next(trainer._unlabelled_loader)
    assert len(labelled["data"]) == len(unlabelled["data"]) == 1
    assert trainer.batch_size == 2
    assert len(labelled["target"]) == 2  # the scales of deep supervision
    assert unlabelled["target"][2].shape == (1, 3, 8, 16, 16)
    assert {*labelled["keys"]} <= {f"case_{number}" for number in range(4)}
    assert {*unlabelled["keys"]} <= {"new_case_4", "new_case_5"}


def test_every_patch_of_an_unlabelled_image_can_be_centred_on_its_disagreement(
    make_trainer: MakeTrainer, make_choices: Any
) -> None:
    make_choices()
    trainer = make_trainer(FROM_SCRATCH)
    trainer.oversample_foreground_percent = 1.0
    stop_in_epoch(trainer, epoch=2)
    loader = trainer._unlabelled_loader
    for _ in range(8):
        chosen, rejected, _ = next(loader)["target"][2][0]
        assert (chosen != rejected).any()


def test_a_step_adds_the_gradient_of_the_pairs_to_that_of_the_labels(
    make_trainer: MakeTrainer, make_choices: Any
) -> None:
    make_choices()
    trainer = make_trainer(FROM_SCRATCH)
    stop_in_epoch(trainer, epoch=2)
    labelled, unlabelled = next(trainer.dataloader_train), next(trainer._unlabelled_loader)
    del trainer.train_step  # the one that stops
    trainer.optimizer.step = lambda *_: None

    def gradient(batch: Any, weight: float) -> list[torch.Tensor]:
        trainer._unlabelled_loader = iter([batch])
        trainer.objective.config = replace(trainer.mapo, lambda_supervised=weight)
        trainer.train_step(labelled)
        weights = [*trainer.network.parameters()]
        return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]

    equal = {**unlabelled, "target": [each.clone() for each in unlabelled["target"]]}
    equal["target"][2][:, 1] = equal["target"][2][:, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
        both, labels, pairs = (
            gradient(unlabelled, 1.0), gradient(equal, 1.0), gradient(unlabelled, 0.0),
        )  # fmt: skip
    assert any(each.abs().max() > 0 for each in pairs)
    for total, first, second in zip(both, labels, pairs, strict=True):
        torch.testing.assert_close(total, first + second)


def test_a_continued_training_takes_the_answers_that_came_meanwhile(
    make_trainer: MakeTrainer, make_choices: Any
) -> None:
    folder = make_choices(verdict=EQUAL, best=None, worst=None)
    first, second = read_answers(folder).values()
    append_undo(folder, 0)
    append_answer(folder, replace(first, verdict="choice", best=GOOD, worst=NOTHING, time="later"))
    trainer = make_trainer(FROM_SCRATCH)
    trainer.save_every = 1
    stop_in_epoch(trainer, epoch=3)
    assert list(trainer._unlabelled.places) == ["new_case_4"]
    append_undo(folder, 1)
    append_answer(folder, replace(second, verdict="choice", best=GOOD, worst=NOTHING, time="later"))
    continued = make_trainer(FROM_SCRATCH, continue_training=True)
    continued.run_training()
    assert "2 answers by ada (2 choice)" in read_log(continued)
    assert len(continued._unlabelled) == 2
    assert "continued after 3 epochs, in round 1" in read_log(continued)


def test_a_continued_training_equals_the_uninterrupted_one(
    make_trainer: MakeTrainer, make_choices: Any, tmp_path: Path
) -> None:
    make_choices()
    whole = make_trainer(FROM_SCRATCH)
    whole.run_training()
    expected = whole._plain_network().state_dict()
    shutil.rmtree(Path(whole.output_folder))
    stopped = make_trainer(FROM_SCRATCH)
    stopped.save_every = 1
    stop_in_epoch(stopped, epoch=2)
    again = make_trainer(FROM_SCRATCH, continue_training=True)
    again.run_training()
    for name, tensor in again._plain_network().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def finish(make_trainer: MakeTrainer, name: str = TINY) -> Any:
    trainer = make_trainer(name)
    trainer.run_training()
    return trainer


@pytest.mark.parametrize(
    "variant", ["Choices", "Choices_NoPreference", "Choices_PseudoLabels", "Choices_ChosenAsLabel"]
)
def test_every_arm_starts_from_the_model_that_was_asked_about(
    make_trainer: MakeTrainer, make_choices: Any, variant: str
) -> None:
    base = finish(make_trainer)
    # nnU-Net would look for it under its own name: the record says where it was
    moved = Path(base.output_folder).parents[1] / "asked"
    shutil.move(Path(base.output_folder), moved)
    folder = make_choices()
    model = json.loads((folder / MODEL).read_text())
    model["checkpoint"] = str(moved / "checkpoint_final.pth")
    (folder / MODEL).write_text(json.dumps(model))
    trainer = make_trainer(f"{TINY}_MAPO_{variant}")
    trainer.run_training()
    assert f"MAPO: fine-tuning {moved / 'checkpoint_final.pth'}" in read_log(trainer)
    assert trainer.num_epochs == 2
    learns = trainer._unlabelled is not None
    assert learns == (not variant.endswith("NoPreference"))


def test_the_control_does_not_need_choices(make_trainer: MakeTrainer) -> None:
    finish(make_trainer)
    trainer = finish(make_trainer, f"{TINY}_MAPO_Choices_NoPreference")
    assert f"fine-tuning {Path(trainer.output_folder).parents[1]}/{TINY}__" in read_log(trainer)


# Bad input: refused before the first step, and nothing is lost ------------------------------------


def refuse(make_trainer: MakeTrainer, words: str, name: str = FROM_SCRATCH) -> None:
    trainer = make_trainer(name)
    with pytest.raises(ChoicesError, match=words):
        trainer.run_training()
    assert trainer.current_epoch == 0


def test_a_variable_that_is_not_set_is_named(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    refuse(make_trainer, f"learns from choices, but {VARIABLE} is not set. Make one with")


def test_another_folder_is_refused(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    refuse(make_trainer, "is no folder of choices: .*model.json is missing")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is damaged"), ("[]", "is damaged"), ('{"version": 99}', "has version 99")],
)
def test_a_damaged_or_later_description_is_refused(
    make_trainer: MakeTrainer, make_choices: Any, content: str, words: str
) -> None:
    (make_choices() / MODEL).write_text(content)
    refuse(make_trainer, words)


def test_images_of_other_plans_or_labels_are_refused(
    make_trainer: MakeTrainer, make_choices: Any
) -> None:
    folder = make_choices()
    model = json.loads((folder / MODEL).read_text())
    model["plans"]["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    model["dataset_json"]["labels"] = {"background": 0, "liver": 1}
    model["dataset_json"]["channel_names"] = {"0": "CT"}
    (folder / MODEL).write_text(json.dumps(model))
    refuse(make_trainer, r"spacing is \[2.0, 2.0, 2.0\] there, .*; labels are .*; channels are ")


def test_another_network_may_learn_from_them(make_trainer: MakeTrainer, make_choices: Any) -> None:
    folder = make_choices()
    model = json.loads((folder / MODEL).read_text())
    kwargs = model["plans"]["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [8, 16, 16]
    (folder / MODEL).write_text(json.dumps(model))
    stop_in_epoch(make_trainer(FROM_SCRATCH), epoch=0)


def test_validation_cases_are_refused_by_their_voxels(
    make_trainer: MakeTrainer, make_choices: Any
) -> None:
    make_choices(noise=0)
    refuse(make_trainer, "new_case_4 in .* is the validation case case_4 of this fold")


@pytest.mark.parametrize("verdict", [EQUAL, UNUSABLE])
def test_a_rater_who_prefers_nothing_is_told_so(
    make_trainer: MakeTrainer, make_choices: Any, verdict: str
) -> None:
    make_choices(verdict=verdict, best=None, worst=None)
    words = rf"nothing to learn from 2 answers by ada \(2 {verdict}\)"
    refuse(make_trainer, rf"{words}.* choose \S+__3d_fullres -f 0 -i UNLABELLED -o \S+choices$")


def test_no_answers_yet_is_said(make_trainer: MakeTrainer, make_choices: Any) -> None:
    (make_choices() / RECORD).unlink()
    refuse(make_trainer, r"nothing to learn from 0 answers \(none\)")


def test_pseudo_labels_need_no_answers(make_trainer: MakeTrainer, make_choices: Any) -> None:
    (make_choices() / RECORD).unlink()
    stop_in_epoch(make_trainer(PSEUDO), epoch=0)


def test_answers_about_other_candidates_or_no_image_are_left_out(
    make_trainer: MakeTrainer, make_choices: Any
) -> None:
    folder = make_choices()
    shutil.copy(folder / IMAGES / "new_case_5_seg.b2nd", folder / IMAGES / "new_case_4_seg.b2nd")
    trainer = make_trainer(FROM_SCRATCH)
    stop_in_epoch(trainer, epoch=0)
    assert list(trainer._unlabelled.places) == ["new_case_5"]
    log = read_log(trainer)
    assert "1 of 2 answers are left out" in log
    assert "any more: new_case_4" in log
    for path in (folder / IMAGES).glob("new_case_5*"):
        path.unlink()
    refuse(make_trainer, r"nothing to learn from 0 answers \(none\)")
    for path in (folder / IMAGES).iterdir():
        path.unlink()
    refuse(make_trainer, "holds no image")


def test_a_line_that_a_crash_has_cut_is_left_out(
    make_trainer: MakeTrainer, make_choices: Any
) -> None:
    folder = make_choices()
    with (folder / RECORD).open("a") as file:
        file.write('{"version": 1, "image": "new_ca')
    trainer = make_trainer(FROM_SCRATCH)
    stop_in_epoch(trainer, epoch=0)
    assert "2 answers by ada" in read_log(trainer)


def test_candidates_by_hand() -> None:
    truth = np.array([[0, 1, 1, 0]])
    expected = [[[1, 0, 0, 1]], [[0, 1, 1, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 0]]]
    assert make_candidates(truth).tolist() == expected
