from __future__ import annotations

import random

import pytest
import torch
from networks import NUM_HEADS, PATCH, FusedAttention, MapNetwork, TokenNetwork, make
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_mapo.guards.network import NetworkError, check_network
from nnunetv2_mapo.method.dropout import StochasticDropout

CPU = torch.device("cpu")


def check(network: nn.Module, **patterns) -> list[str]:
    network.eval()
    dropout = StochasticDropout(network, NUM_HEADS, **patterns)
    return check_network(network, dropout, NUM_HEADS, (1, *PATCH), CPU)


class Then(nn.Module):
    """A network and a function of its output."""

    def __init__(self, function, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.function = network or make("window attention"), function

    def forward(self, x: Tensor) -> object:
        return self.function(self.network(x))


class Block(nn.Module):
    """Feature maps in, feature maps out, by a function of a layer and the maps."""

    def __init__(self, layer: nn.Module, function) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


def conv() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1)


# What is accepted ---------------------------------------------------------------------------------


def test_random_states_and_the_network_are_left_as_they_were():
    network = make("nnU-Net ResEnc")  # batch norm
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate()
    assert check(network) == []
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert len([m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]) == 8


@pytest.mark.parametrize("wrap", [list, tuple])
def test_the_first_output_of_several_is_the_one_at_full_resolution(wrap):
    assert check(Then(lambda logits: wrap([logits, logits[..., ::2, ::2]]))) == []


def test_a_head_of_zeros_cannot_be_checked_yet():
    network = make("window attention")
    nn.init.zeros_(network.head.weight)
    assert check(network) == [
        "the output does not depend on the image yet: dropout could not be checked"
    ]


def test_a_network_with_infinite_outputs_is_not_checked():
    network = make("window attention")
    nn.init.constant_(network.head.weight, torch.inf)
    [note] = check(network)
    assert "random images make its output infinite or NaN" in note


def test_a_lack_of_memory_ends_the_check_and_not_the_training():
    def fail(_logits: Tensor) -> Tensor:
        message = "DefaultCPUAllocator: can't allocate memory"
        raise RuntimeError(message)

    [note] = check(Then(fail))
    assert "not enough memory" in note


def test_dropout_of_its_own_that_ignores_evaluation_mode_is_told():
    [note] = check(Then(lambda logits: functional.dropout(logits, 0.1)))
    assert note.startswith("WARNING: in evaluation mode two forward passes of the network differ")


def test_batch_norm_without_running_statistics_is_told():
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    [note] = check(MapNetwork(conv(), norm))
    assert note.startswith("WARNING: the network mixes the samples of a batch")


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, AttributeError])
def test_a_network_that_fails_is_refused_with_what_nnu_net_feeds_and_how_to_change_it(error):
    def fail(_logits: Tensor) -> Tensor:
        message = "mat1 and mat2 shapes cannot be multiplied"
        raise error(message)

    with pytest.raises(NetworkError) as refused:
        check(Then(fail))
    message = str(refused.value)
    assert "images of shape (2, 1, 32, 32), which is (B, channels, *patch)" in message
    assert f"with {error.__name__}: mat1 and mat2 shapes cannot be multiplied\n" in message
    assert "build_network_architecture(plans_manager, configuration_manager, num_input" in message
    assert "num_input_channels = 1, num_output_channels = 3 and" in message
    assert "patch_size = [32, 32]" in message
    assert "train with -p" in message


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, NUM_HEADS, 1)), "to have 3 channels"),
        (nn.Sequential(nn.Conv2d(1, 8, 32), nn.InstanceNorm2d(8)), "more than 1 spatial element"),
    ],
    ids=["channels", "patch"],
)
def test_hard_coded_channels_and_patches_are_refused_by_name(network, what):
    with pytest.raises(NetworkError, match=f"fails on images of shape .*{what}"):
        check(network)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda logits: logits[..., ::2, ::2], r"shape \(2, 3, 16, 16\)"),
        (lambda logits: logits[:, :2], r"shape \(2, 2, 32, 32\)"),
        (lambda logits: {"logits": logits}, "type dict"),
        (lambda logits: torch.stack([logits, logits], 1), r"shape \(2, 2, 3, 32, 32\)"),
    ],
)
def test_an_output_that_is_not_the_logits_is_refused(function, what):
    with pytest.raises(NetworkError, match=rf"output of {what} .* \(2, 3, 32, 32\) are needed"):
        check(Then(function))


@pytest.mark.parametrize(
    "function",
    [
        torch.sigmoid,
        nn.Sigmoid(),
        lambda logits: logits.sigmoid_(),
        lambda logits: logits.softmax(1),
        lambda logits: logits.movedim(1, -1).softmax(-1).movedim(-1, 1),
        lambda logits: [logits.sigmoid(), logits],
    ],
)
def test_probabilities_are_refused(function):
    with pytest.raises(NetworkError, match="returns probabilities"):
        check(Then(function))


@pytest.mark.parametrize(
    "function", [functional.relu, functional.hardtanh, lambda logits: logits.log_softmax(1)]
)
def test_other_last_activations_are_not_taken_for_probabilities(function):
    assert check(Then(function)) == []


@pytest.mark.parametrize("function", [torch.sigmoid, lambda logits: logits.softmax(1)])
def test_probabilities_that_saturate_are_refused(function):
    network = make("window attention")
    with torch.no_grad():
        network.head.weight *= 1e4
        output = function(network(torch.randn(1, 1, *PATCH)))
    assert output.min() == 0
    assert output.max() == 1
    with pytest.raises(NetworkError, match="returns probabilities"):
        check(Then(function, network))


def test_logits_between_0_and_1_are_not_taken_for_probabilities():
    network = make("window attention")
    with torch.no_grad():
        network.head.weight *= 1e-2
        network.head.bias.fill_(0.4)
        logits = network(torch.randn(1, 1, *PATCH))
    assert 0 < logits.min() < logits.max() < 1
    assert check(network) == []


def test_a_network_that_branches_on_a_tensor_is_checked():
    def branch(logits: Tensor) -> Tensor:
        return torch.cond(logits.sum() > 0, lambda x: x.clone(), lambda x: -x, (logits,))

    assert check(Then(branch)) == []


def test_a_site_that_makes_the_logits_is_refused_until_it_is_excluded():
    class PixelShuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = conv(), nn.Conv2d(8, NUM_HEADS * 16, 4, 4)
            self.stem = nn.Conv2d(1, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return functional.pixel_shuffle(self.last(self.body(self.stem(x))), 4)

    with pytest.raises(NetworkError, match=r"last makes the logits .* dropout_exclude=\('last',\)"):
        check(PixelShuffle())
    assert check(PixelShuffle(), exclude=("last",)) == []


def test_a_network_that_calls_no_site_is_refused():
    def bypass(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return functional.conv2d(x, layer.weight, layer.bias, padding=1)

    network = nn.Sequential(
        Block(nn.Conv2d(1, 8, 3), bypass), nn.InstanceNorm2d(8), nn.Conv2d(8, NUM_HEADS, 1)
    )
    with pytest.raises(NetworkError, match=r"No layer with dropout is called: 0\.layer\."):
        check(network)
    expected = "no dropout in layers that the network never calls: 0.layer"
    assert check(network, include=("1",)) == [expected]


def test_sites_that_do_not_reach_the_output_are_refused():
    class Lost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(1, NUM_HEADS, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.body(x)
            return self.head(x)

    with pytest.raises(NetworkError, match="Dropout after 1 layers does not change the output"):
        check(Lost())


def fold_samples_last(layer: nn.Module, x: Tensor) -> Tensor:
    """Two views of each sample, all first views before all second ones."""
    first, second = layer(torch.cat([x, x.flip(2)])).chunk(2)
    return first + second


def sequence_first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0).reshape(x.shape)


def one_by_one(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([layer(sample[None]) for sample in x])


def weights_of_positions(layer: nn.Module, x: Tensor) -> Tensor:
    return x * layer(torch.ones(8, 8)).mean(0).view(1, 8, 1, 1)


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.Linear(8, 8), sequence_first),
        (conv(), one_by_one),
        (nn.Linear(8, 8), weights_of_positions),
    ],
    ids=["sequence first", "one by one", "no batch"],
)
def test_a_layer_that_lays_the_batch_out_otherwise_is_named_until_it_is_excluded(layer, function):
    network = MapNetwork(Block(layer, function))
    with pytest.raises(NetworkError, match=r"in the output of blocks\.0\.layer: .*") as error:
        check(network)
    assert "dropout_exclude=('blocks.0.layer',)" in str(error.value)
    assert check(network, exclude=("blocks.0.layer",), include=("blocks.0",)) == []


def test_a_layer_that_folds_views_of_the_samples_otherwise_is_named_until_it_is_excluded():
    network = MapNetwork(Block(conv(), fold_samples_last))
    with pytest.raises(
        NetworkError, match=r"changes .* another one: .* likely of blocks\.0\.layer"
    ):
        check(network)
    assert check(network, exclude=("blocks.0.layer",), include=("blocks.0",)) == []


def test_where_no_layer_folds_the_batch_all_are_named():
    network = MapNetwork(Block(conv(), lambda layer, x: layer(x.flip(0)).flip(0)))
    with pytest.raises(NetworkError, match=r"likely of stem, blocks\.0\.layer\."):
        check(network)


def test_a_copy_that_still_calls_the_network_is_refused():
    network = TokenNetwork(FusedAttention())
    network.blocks[0].shortcut = lambda x, block=network.blocks[0]: block.qkv(x)
    network.blocks[0].forward = lambda x, block=network.blocks[0]: (
        x + block.proj(block.shortcut(x)[..., :8])
    )
    with pytest.raises(NetworkError, match=r"copy of the network still calls blocks\.0\."):
        check(network)


def test_a_network_that_cannot_be_copied_is_refused():
    class Unique(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make("window attention")

        def __deepcopy__(self, memo: object) -> nn.Module:
            message = "there is only one of me"
            raise ValueError(message)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises(NetworkError, match=r"deepcopy fails with ValueError: there is only one"):
        check(Unique())
