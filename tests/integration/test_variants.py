"""Whole trainings with each sampler, selection unit, preference loss and reference update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from boxes import is_rehearsal
from test_training import StopHereError, read_log, read_manifests, stop_in_epoch

# nnU-Net divides 0 by 0 where a validation batch has no foreground.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeVariant = Callable[..., Any]
VARIANTS: dict[str, dict[str, Any]] = {
    "case pairs": {"pair": "case", "likelihood": "disagreement"},
    "whole images": {"likelihood": "image"},
    "right voxels only": {"agree": True},
    "found rates": {"rates": "auto", "rates_dice_fall": 0.3},
    "the same masks": {"reference": "network", "preference_dropout": "same masks"},
    "no dropout in training": {"warmup_dropout": False, "preference_dropout": "off"},
    "thresholds": {"sampler": "threshold", "thresholds": (0.5, 0.01, 0.99)},
    "noise": {"sampler": "noise", "noise_sigmas": (0.0, 0.5, 2.0)},
    "windows": {"selection_unit_2d": "window", "selection_unit_3d": "window"},
    "slices of a volume": {"selection_unit_3d": "slice"},
    "cases of slices": {"selection_unit_2d": "case"},
    "overlapping windows": {"tile_step_size": 0.5},
    "quantile": {"pair": "case", "agree": False, "tau_quantile": 0.25, "tau": 1.0},
    "ipo": {"loss_type": "ipo"},
    "hinge": {"loss_type": "hinge"},
    "robust": {"loss_type": "robust", "label_smoothing": 0.1},
    "reference of each round": {"reference": "network", "reference_update": "round"},
    "cached reference of each round": {"reference_update": "round"},
    "moving average": {
        "reference": "network",
        "reference_update": "average",
        "reference_decay": 0.5,
    },
    "no reference": {"reference": "none"},
    "half of the cases": {"cases_per_round": 0.5},
    "surfaces": {"metric": {"nsd": 0.5, "hd95": 0.25, "asd": 0.25}, "tolerance_mm": 2.0},
    "lesions": {"metric": {"lesion_f1": 1, "lesion_dice": 1, "false_volume": 1, "dice": 1}},
    "each part alike": {"metric": "lesion_dice", "part_weight": "part"},
    "skeletons": {"metric": "cldice"},
    "candidates by a metric": {"metric": "nsd", "pair": "case", "likelihood": "disagreement"},
    "a quantile of a metric": {"metric": "nsd", "pair": "case", "tau_quantile": 0.25},
    "own metric": {"metric": "own_metrics:overlap"},
    "best by the metric": {"metric": "nsd", "best_by": "metric", "start_from": "best"},
}


@pytest.fixture
def make_variant(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> MakeVariant:
    """Makes the tiny trainer with other settings."""

    def make(settings: dict[str, Any], **options: Any) -> Any:
        variant = type(make_trainer())
        monkeypatch.setattr(variant, "mapo", replace(variant.mapo, **settings))
        return make_trainer(**options)

    return make


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_a_training_runs_through_two_rounds_with_pairs(
    make_variant: MakeVariant, configuration: str, settings: dict[str, Any]
) -> None:
    trainer = make_variant(settings, configuration=configuration)
    trainer.run_training()
    rounds = read_manifests(trainer)
    assert sorted(rounds) == ["round_01", "round_02"]
    assert rounds["round_01"]["origin"]["settings"] == trainer.mapo.to_dict()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert all(math.isfinite(value) for value in logged["loss/dpo"][2:])
    assert all(value > 0 for value in logged["mining/pairs"][2:])


def first_preference_steps(trainer: Any) -> list[dict[str, Any]]:
    """Values of the steps of round 1 in which there was a pair."""
    steps: list[dict[str, Any]] = []
    train_step = trainer.train_step

    def step_and_note(batch: dict[str, Any]) -> dict[str, Any]:
        output: dict[str, Any] = train_step(batch)
        if not is_rehearsal(trainer) and math.isfinite(output["loss/dpo"]):
            steps.append(output)
        return output

    trainer.train_step = step_and_note
    stop_in_epoch(trainer, epoch=3)
    return steps


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"preference_dropout": "same masks"}, {"preference_dropout": "off"}],
    ids=["without pair", "same masks", "off"],
)
def test_policy_and_reference_are_compared_under_the_same_conditions(
    make_variant: MakeVariant, settings: dict[str, Any], configuration: str
) -> None:
    # At the first step of round 1 they are the same network.
    settings = {"reference": "network", **settings}
    first, *others = first_preference_steps(make_variant(settings, configuration=configuration))
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert abs(others[-1]["rewards/margins"]) > 1e-4


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("windows", math.log(2)),  # DPO
        ("ipo", 0.25),  # 1 / (4 β²) with β = 1
        ("hinge", 1.0),
        ("robust", math.log(2)),
    ],
)
def test_a_round_begins_with_the_loss_of_policy_and_reference_that_agree(
    make_variant: MakeVariant, name: str, loss: float
) -> None:
    settings = {"likelihood": "disagreement", "reference": "network"}
    trainer = make_variant({**VARIANTS[name], **settings})
    losses = [step["loss/dpo"] for step in first_preference_steps(trainer)]
    assert losses[0] == pytest.approx(loss, rel=1e-4)
    assert losses[0] != pytest.approx(losses[-1], rel=1e-4)


def test_the_log_names_what_the_candidates_differ_in(make_variant: MakeVariant) -> None:
    trainer = make_variant(VARIANTS["thresholds"])
    stop_in_epoch(trainer, epoch=2)
    assert "threshold mean Dice" in " ".join(read_log(trainer).split())


def test_thresholds_move_the_foreground_both_ways(make_variant: MakeVariant) -> None:
    trainer = make_variant(VARIANTS["thresholds"])
    stop_in_epoch(trainer, epoch=2)
    image = torch.randn(1, 12, 24, 24)
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    windows = image[:, :8, :16, :16][None]
    with torch.no_grad():
        plain, more, less = trainer.sampler.segment(trainer.network, windows, trainer.labels, 3)[0]
    assert (more > 0).sum() > (plain > 0).sum() > (less > 0).sum()


@pytest.mark.parametrize("unit", ["window", "slice"])
def test_smaller_units_give_more_samples(make_variant: MakeVariant, unit: str) -> None:
    trainer = make_variant({"selection_unit_3d": unit})
    stop_in_epoch(trainer, epoch=2)
    cases = read_manifests(trainer)["round_01"]["cases"].values()
    assert all(len(case["samples"]) > 1 for case in cases)


def test_half_of_the_samples_have_a_pair_by_the_quantile(make_variant: MakeVariant) -> None:
    trainer = make_variant(
        {**VARIANTS["quantile"], "tau_quantile": 0.5, "selection_unit_3d": "slice"}
    )
    stop_in_epoch(trainer, epoch=2)
    samples = [
        sample
        for case in read_manifests(trainer)["round_01"]["cases"].values()
        for sample in case["samples"]
    ]
    gap_of = {id(sample): max(sample["dice"]) - min(sample["dice"]) for sample in samples}
    gaps = sorted(gap_of[id(sample)] for sample in samples if sample["has_foreground"])
    gaps = [gap for gap in gaps if gap > 0]
    tau = gaps[math.ceil((len(gaps) - 1) / 2)]
    assert gaps[0] < tau <= gaps[-1]
    for sample in samples:
        assert (sample["rejected"] is not None) == (gap_of[id(sample)] >= tau)


# Reference ---------------------------------------------------------------------------------------


def read_reference(trainer: Any) -> dict[str, torch.Tensor]:
    path = Path(trainer.output_folder) / "reference.pth"
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_reference_of_each_round_is_the_policy_that_mines_it(
    make_variant: MakeVariant,
) -> None:
    trainer = make_variant(VARIANTS["reference of each round"])
    references, open_round = [], trainer._open_round

    def open_and_look(number: int) -> None:
        open_round(number)
        policy = trainer._plain_network().state_dict()
        assert are_equal(policy, read_reference(trainer))
        assert are_equal(policy, trainer._reference.state_dict())
        references.append(read_reference(trainer))

    trainer._open_round = open_and_look
    trainer.run_training()
    first, second = references
    assert not are_equal(first, second)


def test_the_reference_never_moves_by_default(make_variant: MakeVariant) -> None:
    settings = {"reference": "network"}
    trainer = make_variant(settings)
    stop_in_epoch(trainer, epoch=2)
    before = read_reference(trainer)
    again = make_variant(settings, continue_training=True)
    again.run_training()
    assert are_equal(before, read_reference(again))
    assert are_equal(before, again._reference.state_dict())


@pytest.mark.parametrize("reference", ["cached", "network", "none"])
def test_only_a_reference_that_is_a_network_is_one(
    make_variant: MakeVariant, reference: str
) -> None:
    trainer = make_variant({"reference": reference})
    stop_in_epoch(trainer, epoch=2)
    assert (trainer._reference is None) == (reference != "network")
    _, pairs = trainer._find_pairs(next(trainer.dataloader_train))
    assert pairs.disagreement.has_pair.any()
    assert pairs.reference_margins.any() == (reference == "cached")


def test_a_moving_average_follows_the_policy_in_every_step(make_variant: MakeVariant) -> None:
    trainer = make_variant(VARIANTS["moving average"])
    stop_in_epoch(trainer, epoch=3)
    name, before = next(iter(trainer._reference.named_parameters()))
    expected = before.clone()
    for _ in range(2):
        type(trainer).train_step(trainer, next(trainer.dataloader_train))
        expected = (expected + trainer.network.get_parameter(name).detach()) / 2  # decay 0.5
        torch.testing.assert_close(trainer._reference.get_parameter(name), expected)


CONTINUED = ("moving average", "reference of each round", "cached reference of each round")


@pytest.mark.parametrize("name", [*CONTINUED, "quantile"])
def test_a_variant_continued_ends_like_one_that_was_not_stopped(
    make_variant: MakeVariant, name: str
) -> None:
    for epoch in (3, 4, 5):
        stopped = make_variant(VARIANTS[name], continue_training=epoch > 3)
        stopped.save_every = 1
        stop_in_epoch(stopped, epoch)
        torch.rand(epoch)  # another process has drawn other numbers
    continued = make_variant(VARIANTS[name], continue_training=True)
    continued.run_training()
    whole = make_variant(VARIANTS[name])
    whole.run_training()
    ends = [
        (end.network.state_dict(), end.optimizer.state_dict(),
         end._reference.state_dict() if end._reference else read_reference(end))
        for end in (continued, whole)
    ]  # fmt: skip
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_a_moving_average_survives_a_second_stop_while_a_round_is_mined(
    make_variant: MakeVariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_variant(VARIANTS["moving average"])
    first.save_every = 1
    begin_round = first._begin_round
    first._begin_round = lambda number: stop_here() if number == 2 else begin_round(number)
    with pytest.raises(StopHereError):
        first.run_training()
    stopped = make_variant(VARIANTS["moving average"], continue_training=True)
    with monkeypatch.context() as patch:
        patch.setattr(type(stopped), "_mine", stop_here)
        with pytest.raises(StopHereError):
            stopped.run_training()
    continued = make_variant(VARIANTS["moving average"], continue_training=True)
    continued.run_training()
    whole = make_variant(VARIANTS["moving average"])
    whole.run_training()
    ends = [end._reference.state_dict() for end in (continued, whole)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def stop_here(*_: Any) -> None:
    raise StopHereError


def test_a_damaged_moving_average_is_refused(make_variant: MakeVariant) -> None:
    stopped = make_variant(VARIANTS["moving average"])
    stopped.save_every = 1
    stop_in_epoch(stopped, epoch=4)
    path = Path(stopped.output_folder) / "checkpoint_latest.pth"
    checkpoint = torch.load(path, weights_only=False)
    next(iter(checkpoint["mapo"]["reference"]["weights"].values())).add_(1)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"the reference in it is damaged"):
        make_variant(VARIANTS["moving average"], continue_training=True)
