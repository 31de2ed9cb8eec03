from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.selection import (
    Pair,
    candidate_dice,
    select_pair,
)

TWO = Labels(2)
FOUR = Labels(4)
REGIONS = Labels(2, regions=((1, 2), (2,)))


def test_chosen_is_the_best_and_rejected_the_worst_candidate():
    assert select_pair([0.8, 0.9, 0.2, 0.5], tau=0.3) == Pair(chosen=1, rejected=2)


def test_of_equal_candidates_the_first_one_is_taken():
    assert select_pair([0.5, 0.9, 0.9, 0.1, 0.1], tau=0.3) == Pair(chosen=1, rejected=3)


def test_equal_dice_leaves_no_pair():
    assert select_pair([0.7, 0.7, 0.7], tau=0.1) == Pair(chosen=0, rejected=None)


def test_a_gap_below_tau_leaves_no_pair():
    assert select_pair([0.5, 0.8], tau=0.31) == Pair(chosen=1, rejected=None)


def test_a_gap_of_exactly_tau_is_a_pair():
    # 0.75, 0.5 and 0.25 are exact in binary
    assert select_pair([0.75, 0.5], tau=0.25) == Pair(chosen=0, rejected=1)
    assert select_pair([1.0, 0.0], tau=1.0) == Pair(chosen=0, rejected=1)


def test_one_candidate_alone_is_no_pair():
    assert select_pair([0.4], tau=0.1) == Pair(chosen=0, rejected=None)


def test_dice_of_two_classes_by_hand():
    target = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
    candidates = torch.tensor(
        [
            [[1, 1, 0, 0], [1, 1, 0, 0]],  # 2*4 / (4 + 4)
            [[1, 0, 0, 0], [1, 0, 0, 0]],  # 2*2 / (2 + 4)
            [[0, 1, 1, 0], [0, 1, 1, 0]],  # 2*2 / (4 + 4)
            [[0, 0, 1, 1], [0, 0, 1, 1]],  # 0
            [[1, 1, 1, 1], [1, 1, 1, 1]],  # 2*4 / (8 + 4)
        ]
    )
    dice = candidate_dice(candidates, target, TWO)
    assert dice.dtype == torch.float64
    assert dice.tolist() == pytest.approx([1, 4 / 6, 4 / 8, 0, 8 / 12], abs=1e-12)


def test_both_empty_is_dice_one_and_only_one_empty_is_zero():
    empty, filled = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    filled[0, 0, 0, 0] = 1
    empty, filled = empty.byte(), filled.byte()
    assert candidate_dice(empty, empty[0], TWO).item() == 1
    assert candidate_dice(filled, empty[0], TWO).item() == 0
    assert candidate_dice(empty, filled[0], TWO).item() == 0


def test_dice_is_the_mean_of_the_classes_in_target_or_candidate():
    target = torch.tensor([1, 1, 2, 0, 0, 0])
    candidate = torch.tensor([[1, 0, 2, 3, 0, 0], [1, 0, 2, 0, 0, 0]])
    # class 1: 2*1/(1+2); class 2: 1; class 3: in the first candidate alone, 0
    expected = [(2 / 3 + 1 + 0) / 3, (2 / 3 + 1) / 2]
    assert candidate_dice(candidate, target, FOUR).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(9, 7), (4, 5, 6)])
def test_multi_class_dice_equals_scikit_learns_f1(shape):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, shape)
    candidates = np.where(rng.random((3, *shape)) < 0.4, rng.integers(0, 4, (3, *shape)), target)
    expected = [
        f1_score(target.ravel(), candidate.ravel(), labels=[1, 2, 3], average="macro")
        for candidate in candidates
    ]
    dice = candidate_dice(
        torch.from_numpy(candidates).byte(), torch.from_numpy(target).byte(), FOUR
    )
    assert dice.tolist() == pytest.approx(expected, abs=1e-12)
    assert min(expected) < 0.9


def test_region_dice_by_hand():
    # bits: 1 is region 0, 2 is region 1
    target = torch.tensor([0b11, 0b11, 0b01, 0b00])
    candidates = torch.tensor(
        [
            [0b11, 0b01, 0b01, 0b00],  # region 0: 2*3/(3+3), region 1: 2*1/(1+2)
            [0b10, 0b10, 0b10, 0b00],  # region 0: 0, region 1: 2*2/(3+2)
        ]
    )
    expected = [(1 + 2 / 3) / 2, (0 + 4 / 5) / 2]
    assert candidate_dice(candidates, target, REGIONS).tolist() == pytest.approx(expected)


def test_region_dice_equals_scikit_learns_f1_of_every_region():
    rng = np.random.default_rng(1)
    target, candidate = rng.integers(0, 4, (5, 6, 3)), rng.integers(0, 4, (5, 6, 3))
    expected = np.mean(
        [f1_score((target >> bit & 1).ravel(), (candidate >> bit & 1).ravel()) for bit in (0, 1)]
    )
    dice = candidate_dice(
        torch.from_numpy(candidate)[None].byte(), torch.from_numpy(target).byte(), REGIONS
    )
    assert dice.item() == pytest.approx(expected, abs=1e-12)


def test_an_absent_region_does_not_count_and_no_region_at_all_is_one():
    target = torch.tensor([0b01, 0b00])
    candidates = torch.tensor([[0b01, 0b00], [0b01, 0b10]])
    assert candidate_dice(candidates, target, REGIONS).tolist() == [1, 0.5]
    nothing = torch.zeros(1, 2, dtype=torch.uint8)
    assert candidate_dice(nothing, nothing[0], REGIONS).item() == 1


@pytest.mark.parametrize("labels", [FOUR, REGIONS], ids=["classes", "regions"])
def test_predictions_in_ignored_voxels_do_not_change_dice(labels):
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (6, 8), generator=rng)
    candidates = torch.randint(0, 4, (3, 6, 8), generator=rng)
    valid = torch.rand(6, 8, generator=rng) < 0.6
    others = torch.where(valid, candidates, (candidates + 1) % 4)
    dice = candidate_dice(candidates, target, labels, valid)
    assert candidate_dice(others, target, labels, valid).tolist() == dice.tolist()
    assert candidate_dice(others, target, labels).tolist() != dice.tolist()
    # the same as if the ignored voxels were not there
    kept = candidate_dice(candidates[:, valid], target[valid], labels)
    assert dice.tolist() == kept.tolist()


def test_all_voxels_ignored_is_dice_one():
    candidates = torch.tensor([[1, 2], [0, 0]])
    valid = torch.zeros(2, dtype=torch.bool)
    assert candidate_dice(candidates, torch.tensor([1, 1]), FOUR, valid).tolist() == [1, 1]


def test_tau_zero_takes_any_gap_but_no_tie():
    assert select_pair([0.5, 0.5 + 1e-9], tau=0.0) == Pair(1, 0)
    assert select_pair([0.5, 0.5], tau=0.0) == Pair(0, None)
