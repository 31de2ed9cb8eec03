from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.tools.uncertainty.dropout_statistics import (
    DropoutStatistics,
    Sampling,
    drops_out,
    find_scale,
    sum_samples,
)
from nnunetv2_mapo.tools.uncertainty.uncertainty import vote_variance

CLASSES, REGIONS = Labels(3), Labels(3, regions=((1, 2), (2,), (3,)))


def window(num_dimensions):
    return torch.randn(1, 1, *[16] * num_dimensions, generator=torch.Generator().manual_seed(1))


def statistics(network, num_samples, rate, samples_per_forward=8, labels=CLASSES):
    return DropoutStatistics(
        network, labels, Sampling(num_samples, rate), samples_per_forward=samples_per_forward
    )


@pytest.mark.parametrize("num_dimensions", [2, 3])
@torch.no_grad()
def test_rate_0_is_the_plain_networks_softmax_and_arg_max(make_network, num_dimensions):
    network, image = make_network(num_dimensions), window(num_dimensions)
    plain = network(image)[0].softmax(0)
    means = statistics(network, 1, 0.0)(image)[0]
    assert torch.equal(means[:3], plain)
    assert torch.equal(means[3:].argmax(0), plain.argmax(0))
    assert set(means[3:].unique().tolist()) <= {0, 1}


@torch.no_grad()
def test_rate_0_of_regions_is_the_sigmoid(make_network):
    network, image = make_network(), window(2)
    plain = network(image)[0].sigmoid()
    means = statistics(network, 1, 0.0, labels=REGIONS)(image)[0]
    assert torch.equal(means[:3], plain)
    assert torch.equal(means[3:] == 1, plain > 0.5)


@torch.no_grad()
def test_means_are_those_of_samples_drawn_one_by_one(make_network):
    network, image = make_network(), window(2)
    sampler = statistics(network, 5, 0.3, samples_per_forward=1)
    torch.manual_seed(0)
    means = sampler(image)[0]
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
    means = statistics(network, 8, 0.3, samples_per_forward)(window(2))[0]
    assert sum(seen) == 8
    assert max(seen) == samples_per_forward
    assert torch.allclose(means[3:].sum(0), torch.ones(16, 16))


@torch.no_grad()
def test_a_higher_rate_has_a_higher_variance(make_network):
    variances = []
    for rate in (0.05, 0.3):
        torch.manual_seed(0)
        means = statistics(make_network(), 40, rate)(window(2))[0]
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
def test_other_errors_are_not_taken_for_a_lack_of_memory(make_network):
    with pytest.raises(RuntimeError, match="channels"):
        statistics(make_network(), 8, 0.3)(torch.zeros(1, 2, 16, 16))


def test_weights_go_to_the_network_itself(make_network):
    network, other = make_network(), make_network()
    nn.init.zeros_(next(other.parameters()))
    statistics(network, 2, 0.1).load_state_dict(other.state_dict())
    assert not next(network.parameters()).any()


def test_only_dropout_layers_that_do_something_count():
    assert drops_out(nn.Sequential(nn.Dropout2d(0.1)))
    assert not drops_out(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0)))


def test_scaled_probabilities_stay_within_half_precision_however_small_the_step():
    assert find_scale(0.5) == 512
    for step_size in (1.0, 0.5, 0.25, 0.1, 0.05):
        # Windows of 80 voxels twice as dense, their weights along an axis added up.
        step, places = max(1, round(40 * step_size)), torch.arange(-40, 41)
        centres = range(-step * 40, step * 40 + 1, step)
        weights = sum(
            torch.exp(-((places - c) ** 2) / 200) * (abs(places - c) <= 40) for c in centres
        )
        assert 10 * weights.max() ** 3 * find_scale(step_size) < torch.finfo(torch.half).max
