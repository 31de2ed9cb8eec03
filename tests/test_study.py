"""Pure parts of the study in tests/benchmarks/study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.study.arms import ARMS, Arm, UnknownSettingsError, build_config
from benchmarks.study.command import parse_seeds
from benchmarks.study.effects import Effect, compare, count_signs
from benchmarks.study.images import find_same, shrink_image, shrink_mask, split_cases
from benchmarks.study.losses import LOSSES, blob_losses
from benchmarks.study.plan import BLOCKS, Block, Cell, list_cells
from benchmarks.study.protocol import DATASETS, REGIMES, Regime
from benchmarks.study.results import dump


def test_a_constant_difference_has_an_interval_of_no_width() -> None:
    control = np.arange(12.0).reshape(3, 4)
    effect = compare(control + 0.5, control)
    assert effect[:3] == pytest.approx((0.5, 0.5, 0.5))
    assert effect.by_seed == pytest.approx((0.5, 0.5, 0.5))


def test_one_seed_resamples_cases_alone() -> None:
    # two cases with differences 0 and 1: a replicate's mean is 0, 1/2 or 1 (p 1/4, 1/2, 1/4)
    effect = compare(np.array([[0.0, 1.0]]), np.zeros((1, 2)))
    assert effect == (0.5, 0.0, 1.0, (0.5,))


def test_seeds_are_resampled_as_wholes() -> None:
    # two seeds that differ by 0 and 1 in every case: the same three means
    arm = np.repeat([[0.0], [1.0]], 50, axis=1)
    effect = compare(arm, np.zeros((2, 50)))
    assert effect == (0.5, 0.0, 1.0, (0.0, 1.0))


def test_the_interval_of_many_cases_is_that_of_the_normal_distribution() -> None:
    # 200 differences of -1 and 200 of 1: the mean has the standard error 1 / sqrt(400)
    arm = np.repeat([-1.0, 1.0], 200)[None]
    effect = compare(arm, np.zeros((1, 400)), replicates=20_000)
    assert (effect.low, effect.high) == pytest.approx((-1.96 / 20, 1.96 / 20), abs=0.005)


def test_what_both_arms_share_does_not_widen_the_interval() -> None:
    control = np.random.default_rng(1).normal(0, 10, (3, 50))
    effect = compare(control + 1, control)
    assert effect.high - effect.low < 1e-9


def test_undefined_values_are_left_out_of_their_arm_alone() -> None:
    # the arm leaves an image empty that is empty (NaN), its control finds something there (0)
    arm, control = np.array([[0.8, np.nan]]), np.array([[0.8, 0.0]])
    assert compare(arm, control).mean == pytest.approx(0.8 - 0.4)


def test_signs_follow_the_direction_of_the_metric() -> None:
    effects = [
        Effect(2.0, 1.0, 3.0, (2.0, 2.0)),
        Effect(0.5, -1.0, 2.0, (-1.0, 2.0)),
        Effect(-2.0, -3.0, -1.0, (-2.0, 0.0)),
    ]
    assert count_signs(effects, higher_is_better=True) == (1, 1, 1, 2, 1, 3, 2)
    assert count_signs(effects[:1], higher_is_better=False) == (0, 0, 1, 0, 1, 0, 2)


def test_blocks_have_seeds_outermost_then_datasets() -> None:
    cells = list(Block("short", ("a", "b"), (1, 2), ("X", "Y")).cells())
    assert [cell[1:] for cell in cells] == [
        ("X", "a", 1), ("X", "b", 1), ("Y", "a", 1), ("Y", "b", 1),
        ("X", "a", 2), ("X", "b", 2), ("Y", "a", 2), ("Y", "b", 2),
    ]  # fmt: skip


def test_patterns_choose_cells_of_the_plan() -> None:
    assert list_cells(["short/Kvasir/stock/3"]) == [Cell("short", "Kvasir", "stock", 3)]
    assert {cell.seed for cell in list_cells(["short/*/mapo/[34]"])} == {3, 4}
    assert len(list_cells()) == len(set(list_cells()))


def test_the_plan_names_only_what_there_is() -> None:
    for block in BLOCKS:
        assert block.regime in REGIMES
        assert set(block.arms) <= set(ARMS)
        assert set(block.datasets) <= set(DATASETS)


def test_an_arm_with_unknown_settings_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # of trainer_configs
    with pytest.raises(UnknownSettingsError, match="no_such_setting"):
        build_config(Arm({"no_such_setting": 1}), Regime(2, 2))
    with pytest.raises(UnknownSettingsError, match="beta"):
        build_config(Arm({"beta": -1.0}), Regime(2, 2))


def test_a_mask_keeps_pixels_that_are_half_inside() -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[0, :2] = 1  # half of the first of four pixels
    mask[3, 3] = 1  # a quarter of the last one
    assert shrink_mask(mask, 2).tolist() == [[1, 0], [0, 0]]


def test_a_flat_image_stays_flat() -> None:
    assert (shrink_image(np.full((10, 10, 3), 7, np.uint8), 4) == 7).all()


def test_groups_and_equal_images_stay_in_one_part() -> None:
    names = [f"c{number:02d}" for number in range(24)]
    split = split_cases(names, 8, 12, group_size=4, same=[(0, 23)])
    parts = [{names.index(name) for name in split[part]} for part in ("train", "val")]
    assert not parts[0] & parts[1]
    for part in parts:
        assert len({0, 23} & part) != 1
        assert all(len(set(range(g, g + 4)) & part) in (0, 4) for g in range(0, 24, 4))


def test_a_split_that_does_not_come_out_is_refused() -> None:
    with pytest.raises(ValueError, match="train 0"):
        split_cases(["a", "b", "c"], 1, 1, same=[(0, 1), (1, 2)])


def test_only_images_that_show_the_same_are_paired() -> None:
    first = np.arange(16.0)
    noise = np.random.default_rng(0).normal(size=16)
    assert find_same(np.stack([first, noise, 2 * first + 3])) == [(0, 2)]


def test_results_are_rounded_and_nan_is_null() -> None:
    content = {"a": [0.123456789, float("nan"), 123.456789], "b": {1: np.float32(0.5)}}
    assert json.loads(dump(content)) == {"a": [0.12346, None, 123.46], "b": {"1": 0.5}}


def test_seeds_are_ranges_and_single_numbers() -> None:
    assert parse_seeds("3-5,0") == [3, 4, 5, 0]


def test_the_blob_loss_masks_out_the_other_blobs() -> None:
    target = torch.zeros(1, 3, 8, dtype=torch.long)
    target[0, 1, 0:2] = target[0, 1, 5] = 1
    foreground = torch.zeros(1, 3, 8)
    foreground[0, 1, 0], foreground[0, 1, 5], foreground[0, 0, 7] = 1, 0.5, 0.25
    [losses] = blob_losses(torch.stack((1 - foreground, foreground), 1), target)
    expected = [1 - 2 * 1 / (2 + 1 + 0.25), 1 - 2 * 0.5 / (1 + 0.5 + 0.25)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-4)
    assert blob_losses(torch.stack((1 - foreground, foreground), 1), 0 * target) == []


@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_top_fall_where_the_prediction_is_right(name: str) -> None:
    target = torch.zeros(2, 1, 16, 16)
    target[:, :, 4:12, 6:9] = 1
    right = torch.cat((-target, target), 1) * 20 - 10 * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    loss = LOSSES[name](_NoLoss())
    good, bad = loss(right, target), loss(-right, target)
    assert 0 <= good < 0.05 < 0.3 < bad
    logits = torch.zeros(2, 2, 16, 16, requires_grad=True)
    loss(logits, target).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


class _NoLoss(torch.nn.Module):
    def forward(self, output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return 0 * output.sum()
