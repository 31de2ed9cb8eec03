"""The extension is written out here a second time, as a mean of Jaccard losses over thresholds."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from nnunetv2_mapo.zoo.losses import jaccard_increments, lovasz_jaccard


def jaccard_loss(truth: np.ndarray, wrong: np.ndarray) -> float:
    """1 - |A ∩ B| / |A ∪ B| of the ground truth A and the segmentation B with these errors."""
    segmented = truth ^ wrong
    union = (truth | segmented).sum()
    return 1 - (truth & segmented).sum() / union if union else 0.0


def lovasz_by_thresholds(errors: np.ndarray, truth: np.ndarray) -> float:
    """∫ loss({i : m_i >= t}) dt over t in [0, 1], the Choquet form of the Lovász extension."""
    levels = np.unique(np.concatenate([[0.0], errors]))
    steps = pairwise(levels)
    return sum((high - low) * jaccard_loss(truth, errors >= high) for low, high in steps)


@pytest.mark.parametrize("truth", list(product([False, True], repeat=4)))
def test_it_is_the_jaccard_loss_of_every_hard_segmentation(truth):
    foreground = torch.tensor(truth)
    for wrong in product([0.0, 1.0], repeat=4):
        expected = jaccard_loss(np.array(truth), np.array(wrong) > 0)
        assert lovasz_jaccard(torch.tensor(wrong), foreground).item() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_mean_jaccard_loss_over_thresholds(seed, share):
    rng = np.random.default_rng(seed)
    errors, truth = rng.random((2, 3, 50)), rng.random((2, 3, 50)) < share
    errors[0, 0, 10:20] = errors[0, 0, 5]  # ties
    ours = lovasz_jaccard(torch.from_numpy(errors), torch.from_numpy(truth))
    assert ours.shape == (2, 3)
    for index in np.ndindex(2, 3):
        expected = lovasz_by_thresholds(errors[index], truth[index])
        assert ours[index].item() == pytest.approx(expected, abs=1e-6)


def test_value_by_hand():
    # Sorted errors .9 (fg), .6 (bg), .2 (fg); two voxels of foreground.
    # Jaccard loss after the first: 1 - 1/2; after two: 1 - 1/3; after three: 1 - 0/3.
    # .9 * 1/2 + .6 * (2/3 - 1/2) + .2 * (1 - 2/3) = .45 + .1 + .0667
    errors, foreground = torch.tensor([0.2, 0.9, 0.6]), torch.tensor([True, True, False])
    assert lovasz_jaccard(errors, foreground).item() == pytest.approx(0.616667, abs=1e-6)


def test_gradient_is_the_increment_of_each_voxel():
    errors = torch.tensor([0.2, 0.9, 0.6], requires_grad=True)
    lovasz_jaccard(errors, torch.tensor([True, True, False])).backward()
    assert errors.grad.tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 6])


def test_gradient_agrees_with_finite_differences():
    rng = torch.Generator().manual_seed(0)
    errors = torch.rand(2, 20, generator=rng, dtype=torch.float64).requires_grad_()
    foreground = torch.rand(2, 20, generator=rng) < 0.4
    assert torch.autograd.gradcheck(lambda m: lovasz_jaccard(m, foreground), errors, atol=1e-6)


def test_without_foreground_only_the_largest_error_counts():
    errors = torch.tensor([0.1, 0.7, 0.3], requires_grad=True)
    loss = lovasz_jaccard(errors, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(0.7)
    assert errors.grad.tolist() == [0, 1, 0]


def test_without_background_it_is_the_mean_error():
    # Each further miss raises the Jaccard loss by 1/n.
    errors = torch.tensor([0.1, 0.7, 0.4])
    assert lovasz_jaccard(errors, torch.ones(3, dtype=torch.bool)).item() == pytest.approx(0.4)


def test_voxels_without_error_outside_the_foreground_change_nothing():
    rng = torch.Generator().manual_seed(0)
    errors, foreground = torch.rand(30, generator=rng), torch.rand(30, generator=rng) < 0.3
    more = torch.cat([torch.zeros(7), errors, torch.zeros(5)])
    more_foreground = torch.cat([torch.zeros(7).bool(), foreground, torch.zeros(5).bool()])
    expected = lovasz_jaccard(errors, foreground)
    torch.testing.assert_close(lovasz_jaccard(more, more_foreground), expected)


def test_increments_stay_exact_among_millions_of_voxels():
    # All but one of four million voxels are foreground: each is worth 1/n, which float32 cannot
    # resolve as a difference of losses near 1.
    foreground = torch.ones(4_000_000, dtype=torch.bool)
    foreground[0] = False
    increments = jaccard_increments(foreground)
    assert increments[0].item() == pytest.approx(1 / 4_000_000)
    assert increments[-1].item() == pytest.approx(1 / 4_000_000)
    assert increments.double().sum().item() == pytest.approx(1, rel=1e-6)
