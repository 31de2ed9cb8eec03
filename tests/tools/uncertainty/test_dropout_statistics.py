from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.support.device import OutOfMemoryError
from nnunetv2_mapo.tools.uncertainty.dropout_statistics import (
    SCALE,
    DropoutStatistics,
    sum_samples,
)
from nnunetv2_mapo.tools.uncertainty.uncertainty import vote_variance


def window(num_dimensions):
    return torch.randn(1, 1, *[16] * num_dimensions, generator=torch.Generator().manual_seed(1))


def statistics(network, num_samples, rate, samples_per_forward=8, has_regions=False):
    return DropoutStatistics(
        network, StochasticDropout(network, 3), has_regions=has_regions, num_samples=num_samples,
        rate=rate, samples_per_forward=samples_per_forward,
    )  # fmt: skip


@pytest.mark.parametrize("num_dimensions", [2, 3])
@torch.no_grad()
def test_rate_0_is_the_plain_networks_softmax_and_arg_max(make_network, num_dimensions):
    network, image = make_network(num_dimensions), window(num_dimensions)
    plain = network(image)[0].softmax(0)
    means = statistics(network, 1, 0.0)(image)[0] / SCALE
    assert torch.equal(means[:3], plain)
    assert torch.equal(means[3:].argmax(0), plain.argmax(0))
    assert set(means[3:].unique().tolist()) <= {0, 1}


@torch.no_grad()
def test_rate_0_of_regions_is_the_sigmoid(make_network):
    network, image = make_network(), window(2)
    plain = network(image)[0].sigmoid()
    means = statistics(network, 1, 0.0, has_regions=True)(image)[0] / SCALE
    assert torch.equal(means[:3], plain)
    assert torch.equal(means[3:] == 1, plain > 0.5)


@torch.no_grad()
def test_means_are_those_of_samples_drawn_one_by_one(make_network):
    network, image = make_network(), window(2)
    sampler = statistics(network, 5, 0.3, samples_per_forward=1)
    torch.manual_seed(0)
    means = sampler(image)[0] / SCALE
    torch.manual_seed(0)
    logits = []
    for _ in range(5):
        with sampler.dropout.at(torch.tensor([0.3])):
            logits.append(network(image)[0])
    samples = torch.stack(logits)
    assert torch.allclose(means[:3], samples.softmax(1).mean(0))
    shares = torch.stack([(samples.argmax(1) == c).float().mean(0) for c in range(3)])
    assert torch.allclose(means[3:], shares)


@pytest.mark.parametrize("samples_per_forward", [1, 3, 8])
@torch.no_grad()
def test_as_many_samples_as_wanted_are_drawn(make_network, samples_per_forward):
    network, seen = make_network(), []
    network.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    means = statistics(network, 8, 0.3, samples_per_forward)(window(2))[0] / SCALE
    assert sum(seen) == 8
    assert max(seen) == samples_per_forward
    assert torch.allclose(means[3:].sum(0), torch.ones(16, 16))


@torch.no_grad()
def test_a_higher_rate_has_a_higher_variance(make_network):
    variances = []
    for rate in (0.05, 0.3):
        torch.manual_seed(0)
        means = statistics(make_network(), 40, rate)(window(2))[0] / SCALE
        variances.append(vote_variance(means[3:].numpy()).mean())
    assert 0 < variances[0] < variances[1]


def test_sums_are_those_of_the_samples_by_hand():
    # Two samples of one voxel: probabilities (3/4, 1/4) and (1/2, 1/2); the first of a tie wins.
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()[..., None]
    assert sum_samples(logits, has_regions=False).flatten().tolist() == pytest.approx(
        [1.25, 0.75, 2, 0]
    )
    # Sigmoids 3/4, 1/2 and 1/2, 1/2: only what is above 1/2 is a vote.
    assert sum_samples(logits, has_regions=True).flatten().tolist() == pytest.approx(
        [1.25, 1, 1, 0]
    )


@torch.no_grad()
def test_fewer_samples_are_in_a_forward_pass_once_memory_runs_out(make_network):
    network = make_network()

    def refuse_many(module, images):
        if len(images[0]) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # noqa: EM101

    network.register_forward_pre_hook(refuse_many)
    sampler = statistics(network, 8, 0.3, samples_per_forward=8)
    assert sampler(window(2)).shape == (1, 6, 16, 16)
    assert sampler.samples_per_forward == 2


@torch.no_grad()
def test_too_little_memory_for_a_single_sample_is_named(make_network):
    network = make_network()

    def refuse(module, images):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # noqa: EM101

    network.register_forward_pre_hook(refuse)
    with pytest.raises(OutOfMemoryError, match="too little memory even for one sample"):
        statistics(network, 8, 0.3)(window(2))


@torch.no_grad()
def test_other_errors_are_not_taken_for_a_lack_of_memory(make_network):
    with pytest.raises(RuntimeError, match="channels"):
        statistics(make_network(), 8, 0.3)(torch.zeros(1, 2, 16, 16))


def test_weights_go_to_the_network_itself(make_network):
    network, other = make_network(), make_network()
    nn.init.zeros_(next(other.parameters()))
    statistics(network, 2, 0.1).load_state_dict(other.state_dict())
    assert not next(network.parameters()).any()


def test_scaled_probabilities_stay_within_half_precision():
    # Windows of 80 voxels at a step of 20, twice as dense as nnU-Net's; their weights on an axis.
    places = torch.arange(-40, 41)
    weights = sum(
        torch.exp(-((places - centre) ** 2) / 200) * (abs(places - centre) <= 40)
        for centre in range(-800, 801, 20)
    )
    assert 10 * weights.max() ** 3 * SCALE < torch.finfo(torch.half).max
