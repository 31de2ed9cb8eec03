"""What dropout guarantees, on every network of the zoo in networks.py."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from networks import INCLUDED, NETWORKS, NUM_HEADS, PATCH, Checkpointed, MapNetwork, make
from torch import Tensor, nn

from nnunetv2_mapo.guards.network import check_network
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.dropout_sites import find_dropout_sites
from nnunetv2_mapo.method.reference import build_reference
from nnunetv2_mapo.method.sampling import full_resolution

CPU = torch.device("cpu")
every_network = pytest.mark.parametrize("name", NETWORKS)
every_granularity = pytest.mark.parametrize("granularity", ["element", "channel"])


@pytest.fixture(autouse=True)
def _without_torchs_fused_transformer():
    # without any hook torch computes its transformers with another kernel, equal but for rounding
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def images(num_samples: int) -> Tensor:
    return torch.randn(num_samples, 1, *PATCH, generator=torch.Generator().manual_seed(7))


def add_dropout(network: nn.Module, name: str, granularity: str = "element") -> StochasticDropout:
    return StochasticDropout(network, NUM_HEADS, granularity, include=INCLUDED.get(name, ()))


def run(network: nn.Module, batch: Tensor, dropout=None, rates=(), seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    with dropout.at(torch.tensor(rates)) if dropout else nullcontext():
        return full_resolution(network(batch))


def copy_by_pickling(network: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(network))


def can_be_copied(network: nn.Module, way) -> bool:
    try:
        way(network)
    except (pickle.PicklingError, TypeError, AttributeError):
        return False
    return True


def train(network: nn.Module, dropout: StochasticDropout) -> None:
    torch.manual_seed(0)
    with dropout.at(torch.tensor([0.1, 0.3])):
        full_resolution(network.train()(images(2))).square().mean().backward()


@every_network
@every_granularity
@torch.no_grad()
def test_rate_zero_is_bit_identical_and_every_other_rate_changes_the_output(name, granularity):
    network, rates = make(name), (0.0, 0.005, 0.3, 0.9)
    batch = images(1).repeat(4, 1, 1, 1)
    plain = run(network, batch)
    dropout = add_dropout(network, name, granularity)
    assert torch.equal(run(network, batch), plain)
    assert torch.equal(run(network, batch, dropout, (0.0,) * 4), plain)
    changes = (run(network, batch, dropout, rates) - plain).abs().flatten(1).amax(1)
    assert changes[0] == 0
    assert (changes[1:] > 0).all()


@every_network
@every_granularity
@torch.no_grad()
def test_a_sample_depends_on_no_other_sample_s_rate(name, granularity):
    network = make(name)
    dropout = add_dropout(network, name, granularity)
    one = run(network, images(3), dropout, (0.3, 0.0, 0.6))
    other = run(network, images(3), dropout, (0.3, 0.5, 0.0))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    assert not torch.equal(one[2], other[2])


@every_network
@torch.no_grad()
def test_state_dict_is_unchanged_and_loads_into_the_plain_network(name):
    network = make(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    dropout = add_dropout(network, name)
    run(network, images(2), dropout, (0.5, 0.5))
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    make(name).load_state_dict(after, strict=True)


@every_network
@torch.no_grad()
def test_without_its_hooks_the_network_is_the_original(name):
    network = make(name)
    plain = run(network, images(2))
    dropout = add_dropout(network, name)
    dropout.remove()
    assert torch.equal(run(network, images(2), dropout, (0.5, 0.5)), plain)
    assert not any(module._forward_hooks for module in network.modules())


@every_network
def test_a_reference_can_be_copied_after_a_training_step_and_never_drops(name):
    network = make(name)
    dropout = add_dropout(network, name)
    train(network, dropout)
    network.eval()
    reference = build_reference(network, network.state_dict())
    with torch.no_grad():
        plain = run(network, images(2))
        output = run(reference, images(2), dropout, (0.5, 0.5))
        # torch's attention rounds otherwise where weights need no gradient
        torch.testing.assert_close(output, plain, atol=1e-6, rtol=1e-6)
        for weight in network.parameters():
            weight.mul_(1.5)
        assert torch.equal(run(reference, images(2)), output)


@every_network
@torch.no_grad()
def test_hooks_do_not_hinder_copying_and_pickling(name):
    network = make(name)
    plain = run(network, images(2))
    ways = [way for way in (deepcopy, copy_by_pickling) if can_be_copied(network, way)]
    dropout = add_dropout(network, name)
    for way in ways:
        assert torch.equal(run(way(network), images(2), dropout, (0.5, 0.5)), plain)
    is_unpicklable = name in ("unpicklable", "nnU-Net ResEnc")  # lambdas
    assert ways == ([deepcopy] if is_unpicklable else [deepcopy, copy_by_pickling])


@every_network
def test_the_check_before_a_training_accepts_it(name):
    network = make(name)
    if hasattr(network, "decoder") and hasattr(network.decoder, "deep_supervision"):
        network.decoder.deep_supervision = False
    dropout = add_dropout(network, name)
    uncalled = {"functional attention": "blocks.0.qkv", "shared layer": "blocks.0.unused"}
    notes = check_network(network, dropout, NUM_HEADS, (1, *PATCH), CPU)
    expected = "no dropout in layers that the network never calls: "
    assert notes == ([expected + uncalled[name]] if name in uncalled else [])


@every_network
def test_training_with_dropout_reaches_the_weights_of_every_site_that_is_called(name):
    network = make(name)
    dropout = add_dropout(network, name)
    called = set()
    for layer in dropout.sites.sites:
        layer.module.register_forward_hook(lambda *_, layer=layer: called.add(layer.name))
    train(network, dropout)
    sites = [layer for layer in dropout.sites.sites if layer.name in called]
    gradients = [weight.grad for layer in sites for weight in layer.module.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


# Heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("nnU-Net", ["decoder.seg_layers.0", "decoder.seg_layers.1"]),
        ("MONAI VNet", ["out_tr.conv2"]),
        ("MONAI UNet", ["model.2.conv"]),  # transposed, with overlap
        ("MONAI residual UNet", ["model.2.1.conv.unit0.conv"]),  # 3 x 3
        (
            "MONAI DynUNet",
            [
                "network.output_block.conv.conv",
                "network.deep_supervision_heads.0.conv.conv",
                "network.deep_supervision_heads.1.conv.conv",
            ],
        ),
        ("MONAI UNETR", ["out.conv.conv"]),
        ("MONAI SwinUNETR", ["out.conv.conv"]),
        ("MONAI SegResNet", ["conv_final.2.conv"]),
        ("MONAI AttentionUnet", ["model.2.conv"]),
        ("MONAI MedNeXt", ["out_0.conv_out"]),
        ("fused qkv", ["head"]),
        ("window attention", ["head"]),
    ],
)
def test_output_heads_are_recognised(name, heads):
    layers = find_dropout_sites(make(name), NUM_HEADS).layers
    assert [layer.name for layer in layers if not layer.is_site] == heads
    assert all(layer.reason.startswith("output head: ") for layer in layers if not layer.is_site)


# Details ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_block_is_recomputed_with_the_same_masks(use_reentrant):
    block = Checkpointed(use_reentrant=use_reentrant)
    network = MapNetwork(block)
    dropout = StochasticDropout(network, NUM_HEADS)
    gradients = []
    for block.is_on in (False, True):
        network.zero_grad()
        torch.manual_seed(3)
        with dropout.at(torch.tensor([0.3, 0.6])):
            network(images(2)).square().mean().backward()
        gradients.append([weight.grad.clone() for weight in network.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)
        assert plain.abs().max() > 0


@torch.no_grad()
def test_dropped_outputs_keep_their_types_and_leave_integers_alone():
    network = make("several outputs")
    add_dropout(network, "several outputs")
    block = network.get_submodule("blocks.0")
    features = torch.randn(1, 8, 4, 4)
    dropout = StochasticDropout(block, NUM_HEADS, include=("named", "listed", "keyed"))
    torch.manual_seed(0)
    with dropout.at(torch.tensor([0.5])):
        named, listed, keyed = (
            layer([features]) for layer in (block.named, block.listed, block.keyed)
        )
    assert type(named).__name__ == "Features"
    assert type(listed) is list
    assert type(keyed) is dict
    for maps, scale in (named, (listed[0], listed[1][0]), keyed.values()):
        # once by the convolution, once by the block around it: a share of 1 - 0.5² is 0
        assert abs((maps == 0).float().mean().item() - 0.75) < 0.15
        assert scale.tolist() == [0, 1, 2]


@torch.no_grad()
def test_a_layer_that_is_called_twice_has_other_masks_each_time():
    network = make("shared layer")
    dropout = StochasticDropout(network, NUM_HEADS)
    outputs = []
    network.blocks[0].conv.register_forward_hook(lambda _m, _a, output: outputs.append(output == 0))
    run(network, images(1), dropout, (0.5,))
    assert len(outputs) == 2
    assert not torch.equal(*outputs)


@torch.no_grad()
def test_a_derived_layer_that_returns_its_input_does_not_change_it():
    class Skipped(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return x

    network = nn.Sequential(Skipped(4, 4, 3), nn.Conv2d(4, NUM_HEADS, 1))
    dropout = StochasticDropout(network, NUM_HEADS)
    features = torch.ones(1, 4, 8, 8)
    with dropout.at(torch.tensor([0.5])):
        network(features)
    assert (features == 1).all()


@torch.no_grad()
@every_granularity
def test_a_transformer_with_the_sequence_first_drops_each_sample_at_its_own_rate(granularity):
    layer = nn.TransformerDecoderLayer(
        8, 2, 16
    ).eval()  # torch's default: (tokens, batch, features)
    dropout = StochasticDropout(layer, NUM_HEADS, granularity)
    assert {each.batch_axis for each in dropout.sites.sites} == {1}
    tokens, memory = torch.randn(6, 2, 8), torch.randn(5, 2, 8)
    plain = layer(tokens, memory)
    with dropout.at(torch.tensor([0.0, 0.5])):
        dropped = layer(tokens, memory)
    assert torch.equal(dropped[:, 0], plain[:, 0])
    assert (dropped[:, 1] != plain[:, 1]).any(1).all()


@torch.no_grad()
def test_torch_s_fused_encoder_does_not_bypass_dropout():
    torch.backends.mha.set_fastpath_enabled(True)
    network = make("transformer")
    plain = run(network, images(2))
    dropout = StochasticDropout(network, NUM_HEADS)
    dropped = run(network, images(2), dropout, (0.0, 0.5))
    torch.testing.assert_close(dropped[0], plain[0])  # not bit for bit: the fused kernel is off
    assert (dropped[1] - plain[1]).abs().max() > 0.01


@torch.no_grad()
def test_an_output_that_does_not_hold_the_batch_is_named():
    network = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, NUM_HEADS))
    dropout = StochasticDropout(network, NUM_HEADS)
    with (
        dropout.at(torch.tensor([0.5, 0.5])),
        pytest.raises(ValueError, match=r"dropout of '0': its output of shape \(15, 8\) .* of 2"),
    ):
        network(torch.randn(15, 2))


def test_a_block_that_returns_no_tensor_is_named():
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> object:
            return object()

    network = nn.Sequential(Opaque())
    dropout = StochasticDropout(network, NUM_HEADS, include=("0",))
    with dropout.at(torch.zeros(1)), pytest.raises(TypeError, match="dropout of '0': it returns"):
        network(torch.randn(1, 2))
