from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

import nnunetv2_mapo.method.dropout
from nnunetv2_mapo.method.dropout import (
    StochasticDropout,
    dropout_multiplier,
    preference_rates,
    sample_rates,
)
from nnunetv2_mapo.method.dropout_sites import find_dropout_sites

NUM_HEADS = 3
RATES = torch.tensor([0.0, 0.1, 0.3, 0.6])
ARCHITECTURES = [PlainConvUNet, ResidualEncoderUNet]
every_network = pytest.mark.parametrize(
    ("num_dimensions", "architecture", "norm"),
    [
        (dimensions, architecture, norm)
        for dimensions in (2, 3)
        for architecture in ARCHITECTURES
        for norm in ("instance", "batch")
    ],
)


class SiteNoise:
    """Mask source that gives the same noise to every sample, and to a site in every forward pass.

    So the masks of a batch of K rates are those of K passes with one rate each. Sites whose outputs
    have one shape share their noise.
    """

    def __init__(self) -> None:
        self.masks: list[Tensor] = []

    def __call__(self, rates: Tensor, shape) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        noise = torch.rand((1, *shape[1:]), generator=rng)
        rates = rates.view(-1, *[1] * (len(shape) - 1))
        mask = (noise >= rates) / (1 - rates)
        self.masks.append(mask)
        return mask


@pytest.fixture
def site_noise(monkeypatch) -> SiteNoise:
    noise = SiteNoise()
    monkeypatch.setattr(nnunetv2_mapo.method.dropout, "dropout_multiplier", noise)
    return noise


def image(num_dimensions: int, batch_size: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(batch_size, 1, *[8] * num_dimensions, generator=rng)


def count_dropped(factors: Tensor) -> int:
    return int((factors == 0).sum())


# Candidates ---------------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("granularity", ["element", "channel"])
@torch.inference_mode()
def test_a_candidate_of_a_batch_equals_its_single_pass(
    make_network, site_noise, num_dimensions, architecture, norm, granularity
):
    network = make_network(num_dimensions, architecture, norm)
    dropout = StochasticDropout(network, NUM_HEADS, granularity)
    window = image(num_dimensions)
    with dropout.at(RATES):
        batched = network(window.repeat(len(RATES), *[1] * (window.ndim - 1)))
    for candidate, rate in enumerate(RATES):
        site_noise.masks.clear()
        with dropout.at(rate[None]):
            single = network(window)
        assert len(site_noise.masks) == len(dropout.sites)
        torch.testing.assert_close(batched[candidate], single[0], atol=2e-5, rtol=1e-4)
    assert (batched[0] - batched[2]).abs().max() > 0.01


@every_network
@torch.no_grad()
def test_rate_zero_equals_the_plain_network_bit_for_bit(
    make_network, num_dimensions, architecture, norm
):
    network = make_network(num_dimensions, architecture, norm)
    windows = image(num_dimensions, 3)
    plain = network(windows)
    dropout = StochasticDropout(network, NUM_HEADS)
    with dropout.at(torch.zeros(3)):
        assert torch.equal(network(windows), plain)


@every_network
@torch.no_grad()
def test_every_other_rate_changes_the_output(make_network, num_dimensions, architecture, norm):
    network = make_network(num_dimensions, architecture, norm)
    rates = torch.tensor([0.0, 0.005, 0.05, 0.3, 0.9])
    windows = image(num_dimensions).repeat(len(rates), *[1] * (num_dimensions + 1))
    plain = network(windows)
    dropout = StochasticDropout(network, NUM_HEADS)
    torch.manual_seed(0)
    with dropout.at(rates):
        changes = (network(windows) - plain).abs().flatten(1).amax(1)
    assert changes[0] == 0
    assert (changes[1:] > 0).all()


@torch.no_grad()
def test_two_passes_of_one_rate_differ_and_the_same_seed_repeats_them(make_network):
    network = make_network()
    dropout = StochasticDropout(network, NUM_HEADS)
    outputs = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        with dropout.at(torch.tensor([0.3])):
            outputs.append(network(image(2)))
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


# On and off ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_dropout_is_off_until_switched_on_and_after_the_with_block(make_network):
    network, windows = make_network(), image(2, 2)
    plain = network(windows)
    dropout = StochasticDropout(network, NUM_HEADS)
    assert torch.equal(network(windows), plain)
    with dropout.at(torch.tensor([0.5, 0.5])):
        assert not torch.equal(network(windows), plain)
    assert torch.equal(network(windows), plain)
    assert torch.equal(network.train()(windows), plain)  # instance norm: modes do not differ


@torch.no_grad()
def test_dropout_is_off_after_an_exception(make_network):
    network, windows = make_network(), image(2, 2)
    plain = network(windows)
    dropout = StochasticDropout(network, NUM_HEADS)
    with pytest.raises(KeyError), dropout.at(torch.tensor([0.5, 0.5])):
        raise KeyError
    assert torch.equal(network(windows), plain)


@torch.no_grad()
def test_a_copy_made_while_dropout_is_off_never_drops(make_network):
    network, windows = make_network(), image(2, 2)
    plain = network(windows)
    dropout = StochasticDropout(network, NUM_HEADS)
    copy = deepcopy(network)
    with dropout.at(torch.tensor([0.5, 0.5])):
        assert torch.equal(copy(windows), plain)
        assert not torch.equal(network(windows), plain)


@torch.no_grad()
def test_removed_hooks_leave_the_plain_network(make_network):
    network, windows = make_network(), image(2, 2)
    plain = network(windows)
    dropout = StochasticDropout(network, NUM_HEADS)
    dropout.remove()
    with dropout.at(torch.tensor([0.5, 0.5])):
        assert torch.equal(network(windows), plain)
    assert not any(module._forward_hooks for module in network.modules())


@every_network
def test_state_dict_is_unchanged_by_dropout_hooks(make_network, num_dimensions, architecture, norm):
    network = make_network(num_dimensions, architecture, norm)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dropout = StochasticDropout(network, NUM_HEADS)
    with dropout.at(torch.tensor([0.5])), torch.no_grad():
        network(image(num_dimensions))
        during = network.state_dict()
        assert list(during) == list(before)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    make_network(num_dimensions, architecture, norm).load_state_dict(after, strict=True)


# Sites --------------------------------------------------------------------------------------------


def test_every_convolution_but_the_output_heads_is_a_site_of_a_plain_unet(make_network):
    sites = find_dropout_sites(make_network(deep_supervision=True), NUM_HEADS)
    # 3 encoder stages and 2 decoder stages of one convolution, 2 transposed; 2 heads are left out.
    # `all_modules.0` and the encoder inside the decoder are the same modules under other names.
    assert list(sites) == [
        "encoder.stages.0.0.convs.0.conv",
        "encoder.stages.1.0.convs.0.conv",
        "encoder.stages.2.0.convs.0.conv",
        "decoder.stages.0.convs.0.conv",
        "decoder.stages.1.convs.0.conv",
        "decoder.transpconvs.0",
        "decoder.transpconvs.1",
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_no_segmentation_head_is_a_site(make_network, num_dimensions, architecture):
    network = make_network(num_dimensions, architecture, deep_supervision=True)
    sites = {id(site) for site in find_dropout_sites(network, NUM_HEADS).values()}
    heads = {id(head) for head in network.decoder.seg_layers}
    convolutions = {
        id(module)
        for module in network.modules()
        if type(module).__name__.startswith("Conv") and hasattr(module, "kernel_size")
    }
    assert len(heads) == 2
    assert sites == convolutions - heads


@torch.no_grad()
def test_a_layer_registered_under_two_names_is_dropped_once(site_noise):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3)
            self.second = self.first
            self.head = nn.Conv2d(4, NUM_HEADS, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x))

    network = Twice()
    dropout = StochasticDropout(network, NUM_HEADS)
    assert list(dropout.sites) == ["first"]
    with dropout.at(torch.tensor([0.5])):
        network(image(2))
    assert len(site_noise.masks) == 1


@pytest.mark.parametrize(
    ("layer", "is_site"),
    [
        (nn.Conv2d(8, 3, 1), False),  # a head
        (nn.Conv2d(8, 3, 3), True),
        (nn.Conv2d(8, 4, 1), True),
        (nn.Conv3d(8, 3, (1, 1, 1)), False),
        (nn.Conv3d(8, 3, (1, 3, 3)), True),
        (nn.ConvTranspose2d(8, 3, 4, 4), False),  # a head that also restores the resolution
        (nn.ConvTranspose2d(8, 3, 3, 2), True),
        (nn.ConvTranspose3d(8, 4, 2, 2), True),
        (nn.Conv1d(8, 4, 1), True),
        (nn.Linear(8, 3), False),
        (nn.Linear(8, 4), True),
        (nn.InstanceNorm2d(4), False),
        (nn.LeakyReLU(), False),
        (nn.Embedding(4, 4), False),
    ],
    ids=str,
)
def test_what_is_a_site(layer, is_site):
    head = nn.Conv2d(8, NUM_HEADS, 1)
    assert list(find_dropout_sites(nn.Sequential(layer, head), NUM_HEADS)) == ["0"] * is_site


def test_a_network_without_a_layer_to_drop_is_refused():
    network = nn.Sequential(nn.InstanceNorm2d(1), nn.Conv2d(1, NUM_HEADS, 1))
    with pytest.raises(ValueError, match="Sequential has no convolution or linear layer besides"):
        StochasticDropout(network, NUM_HEADS)


# Attention ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_attention_is_one_site_and_its_weights_are_returned_as_they_are(site_noise):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    network = nn.ModuleList([attention])
    dropout = StochasticDropout(network, NUM_HEADS)
    assert list(dropout.sites) == ["0"]
    tokens = torch.randn(2, 5, 8)
    plain, plain_weights = attention(tokens, tokens, tokens)
    with dropout.at(torch.tensor([0.0, 0.5])):
        features, weights = attention(tokens, tokens, tokens)
    assert torch.equal(weights, plain_weights)
    torch.testing.assert_close(features, plain * site_noise.masks[0])
    assert count_dropped(features[0]) == 0
    assert count_dropped(features[1]) > 0


@torch.no_grad()
def test_attention_with_the_sequence_first_drops_each_sample_at_its_own_rate():
    attention = nn.MultiheadAttention(64, 2).eval()  # torch's default: (tokens, batch, features)
    dropout = StochasticDropout(nn.ModuleList([attention]), NUM_HEADS)
    tokens = torch.randn(6, 2, 64)
    with dropout.at(torch.tensor([0.0, 0.5])):
        features, _ = attention(tokens, tokens, tokens)
    assert count_dropped(features[:, 0]) == 0
    assert count_dropped(features[:3, 1]) > 0
    assert count_dropped(features[3:, 1]) > 0


@torch.no_grad()
def test_torchs_fused_transformer_layer_does_not_bypass_dropout():
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens = torch.randn(2, 5, 8)
    plain = network(tokens)
    dropout = StochasticDropout(network, NUM_HEADS)
    assert list(dropout.sites) == ["self_attn", "linear1", "linear2"]
    with dropout.at(torch.tensor([0.0, 0.5])):
        dropped = network(tokens)
    torch.testing.assert_close(dropped[0], plain[0])
    assert (dropped[1] - plain[1]).abs().max() > 0.01


@torch.inference_mode()
def test_in_inference_the_noise_of_one_sample_is_in_memory_at_a_time(site_noise, monkeypatch):
    monkeypatch.setattr(nnunetv2_mapo.method.dropout, "MOST_NOISE", 1000)
    layer = nn.Linear(8, 64)
    dropout = StochasticDropout(nn.ModuleList([layer]), NUM_HEADS)
    windows = torch.randn(2 * 3, 5, 8)  # three windows of each of two samples
    expected = layer(windows)
    with dropout.at(torch.tensor([0.0, 0.5])):
        features = layer(windows)
    assert [mask.shape for mask in site_noise.masks] == [(3, 5, 64)] * 2
    assert torch.equal(features, expected * torch.cat(site_noise.masks))


@torch.no_grad()
def test_windows_folded_into_the_batch_have_the_rate_of_their_sample():
    layer = nn.Linear(8, 64)
    dropout = StochasticDropout(nn.ModuleList([layer]), NUM_HEADS)
    windows = torch.randn(2 * 3, 5, 8)  # three windows of each of two samples
    with dropout.at(torch.tensor([0.0, 0.5])):
        features = layer(windows)
    assert [count_dropped(features[window]) > 0 for window in range(6)] == [False] * 3 + [True] * 3


# Hooks of the network -----------------------------------------------------------------------------


def test_a_network_s_own_hook_sees_what_is_dropped_and_may_use_it_in_its_loss():
    conv, kept = nn.Conv2d(1, 8, 3), []
    conv.register_forward_hook(lambda _, __, output: kept.extend([output, (output**2).mean()]))
    network = nn.Sequential(conv, nn.Conv2d(8, NUM_HEADS, 1))
    dropout = StochasticDropout(network, NUM_HEADS)
    with dropout.at(torch.tensor([0.0, 0.5])):
        output = network(image(2, 2))
    seen, penalty = kept
    assert count_dropped(seen[0]) == 0
    assert count_dropped(seen[1]) > 0
    (output.mean() + penalty).backward()
    assert conv.weight.grad.abs().max() > 0


# Masks --------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["eager", "compiled"])
def mask_source(request, monkeypatch):
    # both ways to draw a mask, without compiling
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param)
    torch.manual_seed(0)
    return dropout_multiplier


@pytest.mark.parametrize("rate", [0.005, 0.05, 0.3, 0.5, 0.95])
def test_share_of_kept_elements_is_one_minus_the_rate(mask_source, rate):
    num_elements = 200_001
    factors = mask_source(torch.tensor([rate]), (1, num_elements))
    kept = (factors > 0).double().mean().item()
    sigma = math.sqrt(rate * (1 - rate) / num_elements)  # binomial
    assert abs(kept - (1 - rate)) < 5 * sigma


def test_factors_are_zero_or_the_inverse_of_the_kept_share(mask_source):
    rates = torch.tensor([0.0, 0.05, 0.3, 0.75])
    factors = mask_source(rates, (4, 3, 50, 7))
    assert factors.dtype == torch.float32
    assert factors.shape == (4, 3, 50, 7)
    assert factors[0].unique().tolist() == [1]
    for sample, kept in ((1, 1 / 0.95), (2, 1 / 0.7), (3, 4)):
        assert factors[sample].unique().tolist() == pytest.approx([0, kept])


def test_neighbouring_elements_and_samples_are_dropped_independently(mask_source):
    num_elements = 100_000
    dropped = (mask_source(torch.tensor([0.3, 0.3]), (2, num_elements)) == 0).double()
    centred = dropped - 0.3
    for first, second in (
        (centred[0], centred[1]),
        (centred[0, :-1], centred[0, 1:]),
        (centred[0, :-2], centred[0, 2:]),
        (centred[0, :-3], centred[0, 3:]),
        (centred[0, :-4], centred[0, 4:]),
    ):
        # of independent masks, the product of two has mean 0 and deviation p(1-p)
        assert abs((first * second).mean().item()) < 5 * 0.21 / math.sqrt(num_elements)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rates_are_taken(mask_source, dtype):
    factors = mask_source(torch.tensor([0.5], dtype=dtype), (1, 100))
    assert factors.unique().tolist() == [0, 2]


@torch.no_grad()
@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_channel_granularity_drops_whole_channels(num_dimensions):
    layer = [nn.Conv2d, nn.Conv3d][num_dimensions - 2](1, 40, 3)
    plain = layer(image(num_dimensions, 2))
    dropout = StochasticDropout(nn.Sequential(layer), NUM_HEADS, "channel")
    torch.manual_seed(0)
    with dropout.at(torch.tensor([0.0, 0.5])):
        features = layer(image(num_dimensions, 2))
    assert torch.equal(features[0], plain[0])
    dropped = (features[1] == 0).flatten(1)
    assert 0 < dropped.all(1).sum() < 40
    assert (dropped.all(1) == dropped.any(1)).all()
    kept = ~dropped.all(1)
    torch.testing.assert_close(features[1, kept], 2 * plain[1, kept])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "attention", "attention, sequence first"])
def test_channel_granularity_drops_a_feature_of_all_tokens(kind):
    is_sequence_first = kind.endswith("first")
    layer = nn.Linear(40, 40)
    if kind != "linear":
        layer = nn.MultiheadAttention(40, 2, batch_first=not is_sequence_first).eval()
    dropout = StochasticDropout(nn.ModuleList([layer]), NUM_HEADS, "channel")
    tokens = torch.randn((6, 2, 40) if is_sequence_first else (2, 6, 40))
    torch.manual_seed(0)
    with dropout.at(torch.tensor([0.0, 0.5])):
        features = layer(tokens) if kind == "linear" else layer(tokens, tokens, tokens)[0]
    features = features.transpose(0, 1) if is_sequence_first else features
    assert count_dropped(features[0]) == 0
    dropped = features[1] == 0
    assert 0 < dropped[0].sum() < 40
    assert torch.equal(dropped, dropped[:1].expand(6, -1))


@torch.no_grad()
def test_dropout_keeps_the_dtype_of_the_features():
    layer = nn.Linear(4, 8).to(torch.bfloat16)
    dropout = StochasticDropout(nn.Sequential(layer), NUM_HEADS)
    with dropout.at(torch.tensor([0.5])):
        assert layer(torch.randn(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_drawn_rates_are_all_the_candidate_rates_about_equally_often():
    torch.manual_seed(0)
    rates = sample_rates((0.0, 0.1, 0.25), 3000, torch.device("cpu"))
    assert rates.dtype == torch.float32
    values, counts = rates.unique(return_counts=True)
    assert values.tolist() == pytest.approx([0, 0.1, 0.25])
    # 1000 of each expected, five times the binomial deviation sqrt(3000 * 1/3 * 2/3) = 26
    assert (counts - 1000).abs().max() < 130


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_gradients_equal_those_of_explicit_masks(site_noise, granularity):
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3)
    network = nn.Sequential(first, nn.InstanceNorm2d(4), nn.LeakyReLU(), second)
    windows = image(2, 2)

    hooked = deepcopy(network)
    dropout = StochasticDropout(hooked, NUM_HEADS, granularity)
    with dropout.at(torch.tensor([0.2, 0.6])):
        output = hooked(windows)
    output.square().sum().backward()

    masks = [mask.view(*mask.shape, *[1] * (4 - mask.ndim)) for mask in site_noise.masks]
    features = nn.functional.instance_norm(first(windows) * masks[0])
    expected = second(nn.functional.leaky_relu(features)) * masks[1]
    expected.square().sum().backward()

    torch.testing.assert_close(output, expected)
    for ours, explicit in zip(hooked.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, explicit.grad)
        assert explicit.grad.abs().max() > 0


@every_network
def test_training_reaches_every_weight_through_dropout(
    make_network, num_dimensions, architecture, norm
):
    network = make_network(num_dimensions, architecture, norm).train()
    dropout = StochasticDropout(network, NUM_HEADS)
    with dropout.at(torch.tensor([0.1, 0.3])):
        network(image(num_dimensions, 2)).square().mean().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())
    assert all(weight.grad.abs().max() > 0 for weight in network.parameters() if weight.ndim > 2)


# torch.compile ------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@torch.no_grad()
def test_new_rates_do_not_compile_anew_and_on_and_off_are_two_graphs(make_network):
    graphs = []

    def counting_backend(graph, _example_inputs):
        graphs.append(graph)
        return graph.forward

    network = make_network()
    dropout = StochasticDropout(network, NUM_HEADS)
    compiled = torch.compile(network, backend=counting_backend)
    windows = image(2, 2)
    plain = compiled(windows)
    assert len(graphs) == 1
    outputs = []
    for rates in ([0.1, 0.3], [0.0, 0.25], [0.3, 0.3], [0.05, 0.0], [0.5, 0.9]):
        with dropout.at(torch.tensor(rates)):
            outputs.append(compiled(windows))
        assert torch.equal(compiled(windows), plain)
    assert len(graphs) == 2
    assert not any(torch.equal(output, plain) for output in outputs)
    torch.testing.assert_close(outputs[1][0], plain[0])  # rate 0


def thin_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, NUM_HEADS, 1))


@pytest.mark.usefixtures("fresh_dynamo")
@torch.no_grad()
def test_inductor_compiles_dropout_on_the_cpu():
    network, windows = thin_network(), image(2, 2)
    plain = network(windows)
    dropout = StochasticDropout(network, NUM_HEADS)
    compiled = torch.compile(network, backend="inductor")
    with dropout.at(torch.tensor([0.0, 0.5])):
        first, second = compiled(windows), compiled(windows)
    torch.testing.assert_close(first[0], plain[0], atol=1e-5, rtol=1e-5)
    assert (first[1] - plain[1]).abs().max() > 0.01
    assert (first[1] - second[1]).abs().max() > 0.01


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_gradients_of_rate_zero_equal_the_plain_ones():
    network, windows = thin_network(), image(2, 2)
    network(windows).square().mean().backward()
    plain = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    dropout = StochasticDropout(network, NUM_HEADS)
    compiled = torch.compile(network, backend="aot_eager")  # forward and backward are traced
    with dropout.at(torch.zeros(2)):
        compiled(windows).square().mean().backward()
    for weight, expected in zip(network.parameters(), plain, strict=True):
        torch.testing.assert_close(weight.grad, expected)
    with dropout.at(torch.tensor([0.5, 0.5])):
        compiled(windows).square().mean().backward()
    assert not torch.equal(network[0].weight.grad, 2 * plain[0])


def test_rates_of_the_preference_stage_make_policy_and_reference_comparable():
    rates, has_pair = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([True, False, True])
    assert preference_rates(rates, has_pair, "off").tolist() == [0, 0, 0]
    without = preference_rates(rates, has_pair, "without pair")
    assert without.tolist() == pytest.approx([0, 0.2, 0])
    assert torch.equal(preference_rates(rates, has_pair, "same masks"), rates)
    assert rates[0] == pytest.approx(0.1)  # not changed in place
