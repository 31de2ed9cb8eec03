from __future__ import annotations

import pytest
import torch

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.sampling import (
    DropoutSampler,
    NoiseSampler,
    ThresholdSampler,
    cut,
    full_resolution,
    make_sampler,
)

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
    candidates = DropoutSampler((0.0, 0.4, 0.8), dropout).segment(network, windows, labels, 4)
    assert candidates.shape == (2, 3, *[8] * num_dimensions)
    assert candidates.dtype == torch.uint8
    # candidate 0 of window w is window w's: candidates of a window lie next to each other
    assert torch.equal(candidates[:, 0].long(), expected)
    assert not torch.equal(expected[0], expected[1])
    for candidate in (1, 2):
        assert not torch.equal(candidates[:, candidate].long(), expected)
    assert not dropout.switch.active


@torch.no_grad()
def test_each_window_has_its_own_candidates(make_network):
    network = make_network()
    windows = torch.randn(3, 1, 8, 8)
    expected = network(windows).argmax(1)
    assert len({tuple(window.flatten().tolist()) for window in expected}) == 3
    dropout = StochasticDropout(network, 3)
    candidates = DropoutSampler((0.0, 0.0), dropout).segment(network, windows, CLASSES, 4)
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
    candidates = DropoutSampler((0.0,), dropout).segment(network, windows, CLASSES, 4)
    assert torch.equal(candidates[:, 0].long(), outputs[0].argmax(1))


# Every sampler -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout", "threshold", "noise"])
@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("images_per_forward", [1, 4, 100])  # of two windows, three candidates each
@torch.inference_mode()
def test_the_first_candidate_is_plain_and_the_others_differ(
    make_network, name, labels, images_per_forward
):
    network, seen = make_network(), []
    windows = torch.randn(2, 1, 16, 16)
    image, expected = windows.clone(), plain_label_map(network(windows), labels)
    config = MAPOConfig(
        sampler=name,
        rates_2d=(0.0, 0.4, 0.8),
        thresholds=(0.5, 0.1, 0.9),
        noise_sigmas=(0.0, 1.0, 2.0),
    )
    sampler = make_sampler(config, 2, StochasticDropout(network, 3), num_image_channels=1)
    network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    candidates = sampler.segment(network, windows, labels, images_per_forward)
    assert max(seen) <= images_per_forward
    assert sum(seen) == 2 * sampler.num_passes
    assert candidates.shape == (2, 3, 16, 16)
    assert candidates.dtype == torch.uint8
    assert torch.equal(candidates[:, 0].long(), expected)
    assert all((candidates[:, k].long() != expected).any() for k in (1, 2))
    assert torch.equal(windows, image)  # noise is added to a copy
    assert sampler.values == config.candidates(2).values
    assert sampler.num_passes == (1 if name == "threshold" else 3)


# Thresholds --------------------------------------------------------------------------------------


def test_thresholds_of_two_classes_by_hand():
    # foreground probabilities 0.3, 0.45, 0.55 and 0.8
    probability = torch.tensor([0.3, 0.45, 0.55, 0.8])
    logits = torch.stack([torch.zeros(4), probability.logit()])[None]
    candidates = cut(logits, (0.5, 0.4, 0.6), Labels(2))
    assert candidates[0].tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]


def test_thresholds_of_several_classes_cut_the_best_foreground_class_against_background():
    # probabilities (background, 1, 2): (0.4, 0.3, 0.3) is background at 0.5, though 0.6 of it is
    # foreground, because argmax says so; 0.3 / (0.3 + 0.4) = 0.43 is above 0.4
    probabilities = torch.tensor([[0.4, 0.3, 0.3], [0.4, 0.1, 0.5], [0.2, 0.7, 0.1]])
    logits = probabilities.log().T[None]
    candidates = cut(logits, (0.5, 0.4, 0.6), Labels(3))
    assert candidates[0].tolist() == [[0, 2, 1], [1, 2, 1], [0, 0, 1]]  # 0.5 / 0.9 = 0.56


def test_thresholds_of_regions_cut_each_region_for_itself():
    probabilities = torch.tensor([[0.7, 0.45], [0.55, 0.3]])  # two voxels, two regions
    candidates = cut(probabilities.logit().T[None], (0.5, 0.4, 0.6), Labels(2, ((1, 2), (2,))))
    assert candidates[0].tolist() == [[0b01, 0b01], [0b11, 0b01], [0b01, 0b00]]


@pytest.mark.parametrize("num_heads", [2, 5])
def test_threshold_one_half_is_argmax_also_where_logits_tie(num_heads):
    logits = torch.randint(-2, 3, (3, num_heads, 50)).float()
    assert torch.equal(cut(logits, (0.5,), Labels(num_heads))[:, 0].long(), logits.argmax(1))


def test_a_higher_threshold_never_adds_foreground():
    sampler = ThresholdSampler(MAPOConfig().thresholds)
    logits = torch.randn(1, 3, 1000)
    candidates = sampler.segment(torch.nn.Identity(), logits, CLASSES, 4)
    sizes = {
        threshold: int((candidate > 0).sum())
        for threshold, candidate in zip(sampler.values, candidates[0], strict=True)
    }
    assert sorted(sizes, key=sizes.get, reverse=True) == sorted(sizes)


# Noise -------------------------------------------------------------------------------------------


def test_noise_has_its_standard_deviation_and_spares_the_previous_stage():
    seen = []

    def network(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs)
        return inputs

    windows = torch.randn(2, 3, 64, 64)  # two image channels, one of a previous stage
    torch.manual_seed(0)
    NoiseSampler((0.0, 0.05, 0.5), 2).segment(network, windows, CLASSES, 6)
    (inputs,) = seen
    noise = (inputs - windows.repeat_interleave(3, 0)).view(2, 3, 3, 64, 64)
    assert torch.equal(noise[:, 0], torch.zeros(2, 3, 64, 64))
    assert torch.equal(noise[:, :, 2], torch.zeros(2, 3, 64, 64))
    # the standard deviation of 16384 values is known to 1 / sqrt(2 * 16384) = 0.55 %
    for place, sigma in ((1, 0.05), (2, 0.5)):
        assert noise[:, place, :2].std().item() == pytest.approx(sigma, rel=0.03)
        assert not torch.equal(noise[0, place, 0], noise[1, place, 0])
