from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_mapo.method.preference_losses import (
    hinge_loss,
    ipo_loss,
    preference_loss,
    robust_loss,
    sigmoid_loss,
)

LN3 = torch.tensor(math.log(3))  # σ(ln 3) = 3/4


def test_sigmoid_loss_by_hand():
    # β Δ = 0.5 ln 9 = ln 3; -log σ(ln 3) = ln(4/3)
    assert sigmoid_loss(2 * LN3, 0.5).item() == pytest.approx(math.log(4 / 3))
    assert sigmoid_loss(torch.tensor(0.0), 5.0).item() == pytest.approx(math.log(2))


def test_conservative_loss_by_hand():
    # 0.9 ln(4/3) + 0.1 ln 4
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert sigmoid_loss(LN3, 1.0, 0.1).item() == pytest.approx(expected)


def test_robust_loss_by_hand():
    # (0.9 ln(4/3) - 0.1 ln 4) / 0.8
    expected = (0.9 * math.log(4 / 3) - 0.1 * math.log(4)) / 0.8
    assert robust_loss(LN3, 1.0, 0.1).item() == pytest.approx(expected)


def test_robust_loss_is_unbiased_under_turned_pairs():
    # turned round with probability 0.2, its mean is the sigmoid loss of the right pair
    mean = 0.8 * robust_loss(LN3, 1.0, 0.2) + 0.2 * robust_loss(-LN3, 1.0, 0.2)
    assert mean.item() == pytest.approx(math.log(4 / 3))


def test_ipo_loss_by_hand():
    # the aim 1 / (2 β) of β = 0.25 is 2
    delta = torch.tensor([0.0, 2.0, 5.0])
    assert ipo_loss(delta, 0.25).tolist() == [4.0, 0.0, 9.0]


def test_hinge_loss_by_hand():
    delta = torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0])
    assert hinge_loss(delta, 0.5).tolist() == [1.5, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("loss_type", "label_smoothing", "expected"),
    [
        ("sigmoid", 0.0, sigmoid_loss(LN3, 0.7)),
        ("sigmoid", 0.2, sigmoid_loss(LN3, 0.7, 0.2)),
        ("robust", 0.2, robust_loss(LN3, 0.7, 0.2)),
        ("ipo", 0.0, ipo_loss(LN3, 0.7)),
        ("hinge", 0.0, hinge_loss(LN3, 0.7)),
    ],
)
def test_a_loss_is_found_by_its_name(loss_type, label_smoothing, expected):
    loss = preference_loss(LN3, loss_type=loss_type, beta=0.7, label_smoothing=label_smoothing)
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "robust"])
def test_every_loss_wants_a_larger_margin_where_policy_and_reference_agree(loss_type):
    delta = torch.zeros(1, requires_grad=True)
    smoothing = 0.1 if loss_type == "robust" else 0.0
    loss = preference_loss(delta, loss_type=loss_type, beta=0.3, label_smoothing=smoothing)
    loss.sum().backward()
    assert delta.grad.item() < 0
