from __future__ import annotations

import pytest
import torch

from nnunetv2_mapo.dropout import StochasticDropout
from nnunetv2_mapo.labels import Labels
from nnunetv2_mapo.sampling import dropout_candidates, fit_windows_per_forward, full_resolution

CLASSES = Labels(3)
REGIONS = Labels(3, regions=((1, 2, 3), (2, 3), (3,)))


def plain_label_map(logits: torch.Tensor, labels: Labels) -> torch.Tensor:
    if labels.regions is None:
        return logits.argmax(1)
    return sum((logits[:, region] > 0).long() * 2**region for region in range(3))


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("num_dimensions", [2, 3])
@torch.no_grad()
def test_candidates_of_rate_zero_are_the_plain_predictions(make_network, num_dimensions, labels):
    network = make_network(num_dimensions)
    windows = torch.randn(2, 1, *[8] * num_dimensions)
    expected = plain_label_map(network(windows), labels)
    dropout = StochasticDropout(network, 3)
    torch.manual_seed(0)
    rates = torch.tensor([0.0, 0.4, 0.8])
    candidates = dropout_candidates(network, dropout, windows, rates, labels)
    assert candidates.shape == (2, 3, *[8] * num_dimensions)
    assert candidates.dtype == torch.uint8
    # candidate 0 of window w is window w's: candidates of a window lie next to each other
    assert torch.equal(candidates[:, 0].long(), expected)
    assert not torch.equal(expected[0], expected[1])
    for candidate in (1, 2):
        assert not torch.equal(candidates[:, candidate].long(), expected)
    assert not dropout.active


@torch.no_grad()
def test_each_window_has_its_own_candidates(make_network):
    network = make_network()
    windows = torch.randn(3, 1, 8, 8)
    expected = network(windows).argmax(1)
    assert len({tuple(window.flatten().tolist()) for window in expected}) == 3
    dropout = StochasticDropout(network, 3)
    candidates = dropout_candidates(network, dropout, windows, torch.zeros(2), CLASSES)
    for candidate in (0, 1):
        assert torch.equal(candidates[:, candidate].long(), expected)


@torch.no_grad()
def test_deep_supervision_gives_candidates_at_full_resolution(make_network):
    network = make_network(deep_supervision=True).train()
    windows = torch.randn(1, 1, 16, 16)
    outputs = network(windows)
    assert [tuple(output.shape[2:]) for output in outputs] == [(16, 16), (8, 8)]
    assert full_resolution(outputs) is outputs[0]
    assert full_resolution(tuple(outputs)) is outputs[0]
    assert full_resolution(outputs[0]) is outputs[0]
    dropout = StochasticDropout(network, 3)
    candidates = dropout_candidates(network, dropout, windows, torch.zeros(1), CLASSES)
    assert torch.equal(candidates[:, 0].long(), outputs[0].argmax(1))


@pytest.mark.parametrize(
    ("num_candidates", "batch_size", "num_windows"),
    [
        (7, 2, 1),  # 8 samples fit: one window of 7
        (11, 12, 4),  # 48 samples fit: four windows of 11
        (4, 1, 1),
        (7, 1, 1),  # never none
        (2, 2, 4),
    ],
)
def test_a_forward_pass_holds_four_times_the_training_batch(
    num_candidates, batch_size, num_windows
):
    assert fit_windows_per_forward(num_candidates, batch_size) == num_windows
