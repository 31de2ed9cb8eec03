from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunetv2_mapo.guards.steps import MOST_IN_A_ROW, NotFiniteError, StepGuard

OPTIMIZERS = [
    lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda weights: torch.optim.AdamW(weights, 0.1),
    lambda weights: torch.optim.Adam(weights, 0.1, amsgrad=True),
]


def step(optimizer, weights, gradient) -> None:
    for weight, values in zip(weights, gradient, strict=True):
        weight.grad = torch.tensor(values)
    optimizer.step()


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS, ids=["sgd", "adamw", "amsgrad"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_with_a_bad_gradient_is_as_if_it_had_not_been(make_optimizer, bad):
    results = []
    for gradients in ([[1.0, 2.0], [bad, 1.0], [3.0, 1.0]], [[1.0, 2.0], [3.0, 1.0]]):
        weights = [torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)]
        optimizer = make_optimizer(weights)
        StepGuard().watch(optimizer)
        for gradient in gradients:
            step(optimizer, weights, [gradient, [0.5]])
        results.append(torch.cat(weights))
    assert torch.equal(*results)
    assert results[0].isfinite().all()


def test_a_finite_gradient_is_not_changed():
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 1.0)
    StepGuard().watch(optimizer)
    step(optimizer, [weight], [[2.0**99, -3.0]])
    assert weight.tolist() == [-(2.0**99), 3.0]


def test_infinities_that_would_cancel_are_seen():
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 1.0)
    StepGuard().watch(optimizer)
    step(optimizer, [weight], [[math.inf, -math.inf]])
    assert weight.tolist() == [0.0, 0.0]


def test_a_step_without_any_gradient_does_no_harm():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    StepGuard().watch(optimizer)
    optimizer.step()


def test_a_weight_without_gradient_does_no_harm():
    used, unused = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([used, unused], 1.0)
    StepGuard().watch(optimizer)
    used.grad = torch.ones(1)
    optimizer.step()
    assert (used.item(), unused.item()) == (-1.0, 0.0)


def test_skipped_steps_are_counted_and_a_good_one_begins_the_count_anew():
    weight = torch.zeros(1, requires_grad=True)
    optimizer, guard = torch.optim.SGD([weight], 1.0), StepGuard()
    guard.watch(optimizer)
    for _ in range(2):
        for _ in range(MOST_IN_A_ROW - 1):
            step(optimizer, [weight], [[math.nan]])
            guard.check({"loss": 1.0}, 0, [])
        step(optimizer, [weight], [[0.0]])
        guard.check({"loss": 1.0}, 0, [])
    assert guard.reset() == 2 * (MOST_IN_A_ROW - 1)
    assert guard.reset() == 0


def test_a_bad_loss_counts_where_gradscaler_has_skipped_the_step():
    guard = StepGuard()
    for _ in range(3):
        guard.check({"loss": math.nan}, 0, [])
    assert guard.reset() == 3


def test_too_many_in_a_row_stop_the_training_with_what_was_seen():
    guard = StepGuard()
    for _ in range(MOST_IN_A_ROW - 1):
        guard.check({"loss": math.inf}, 0, [])
    values = {"loss": np.float32(math.inf), "loss/dpo": 0.25}
    with pytest.raises(NotFiniteError, match="20 training steps in a row") as error:
        guard.check(values, 3, ["a", "b"])
    assert "in epoch 3 with a, b: loss inf, loss/dpo 0.25." in str(error.value)
