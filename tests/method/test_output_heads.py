from __future__ import annotations

import pytest
import torch
from networks import NUM_HEADS, PATCH, make
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_mapo.method.dropout_sites import find_dropout_sites

IMAGES = torch.zeros(1, 1, *PATCH)


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class SideOutputs(nn.Module):
    """The pattern of U²-Net: 3 x 3 heads at each resolution, resized, and a 1 x 1 head of all."""

    def __init__(self, num_axes: int = 2, *, is_deep: bool = True, last=torch.sigmoid) -> None:
        super().__init__()
        layer, pool = (nn.Conv2d, nn.AvgPool2d) if num_axes == 2 else (nn.Conv3d, nn.AvgPool3d)
        self.stages = nn.ModuleList(layer(inputs, 8, 3, padding=1) for inputs in (1, 8))
        self.side = nn.ModuleList(layer(8, NUM_HEADS, 3, padding=1) for _ in range(2))
        self.fuse, self.pool, self.last = layer(2 * NUM_HEADS, NUM_HEADS, 1), pool(2), last
        self.mode = "bilinear" if num_axes == 2 else "trilinear"
        self.is_deep = is_deep

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        size, sides = x.shape[2:], []
        for stage, side in zip(self.stages, self.side, strict=True):
            x = functional.relu(stage(x))
            sides.append(functional.interpolate(side(x), size, mode=self.mode))
            x = self.pool(x)
        fused = self.fuse(torch.cat(sides, 1))
        return [self.last(each) for each in (fused, *sides)] if self.is_deep else self.last(fused)


class AddedScores(nn.Module):
    """The pattern of a fully convolutional network: scores of each resolution, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv(1, 8), nn.Conv2d(8, 8, 3, 2, 1)
        self.fine, self.coarse = conv(8, NUM_HEADS), conv(8, NUM_HEADS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fine(x) + functional.interpolate(self.coarse(self.body(x)), scale_factor=2)


class Gated(nn.Module):
    """Layers with as many outputs as there are heads: gate, normalised and hidden ones, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.gated = conv(1, 8), conv(8, NUM_HEADS), conv(8, NUM_HEADS)
        self.normalised, self.norm = conv(NUM_HEADS, NUM_HEADS), nn.BatchNorm2d(NUM_HEADS)
        self.hidden, self.head = conv(NUM_HEADS, NUM_HEADS), conv(NUM_HEADS, NUM_HEADS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.gated(x) * self.gate(x).sigmoid()
        return self.head(self.hidden(self.norm(self.normalised(x))).relu_())


def heads(network: nn.Module, images: Tensor | None = IMAGES) -> dict[str, str]:
    layers = find_dropout_sites(network, NUM_HEADS, images=images).layers
    return {layer.name: layer.reason for layer in layers if not layer.is_site}


WAY = "output head: returned through resizing, fusion or activation"
FUSED = "output head: 1x1 convolution to 3 heads"


@pytest.mark.parametrize("last", [torch.clone, torch.sigmoid, torch.logit])
@pytest.mark.parametrize("is_deep", [True, False])
def test_side_outputs_are_heads_whether_they_are_returned_or_only_fused(is_deep, last):
    network = SideOutputs(is_deep=is_deep, last=last)
    assert heads(network) == {"side.0": WAY, "side.1": WAY, "fuse": FUSED}
    assert list(heads(network, None)) == ["fuse"]


def test_side_outputs_of_volumes_are_heads():
    assert len(heads(SideOutputs(3), torch.zeros(2, 1, 8, 8, 8))) == 3


def test_scores_that_are_added_up_are_heads():
    assert heads(AddedScores()) == {"fine": WAY, "coarse": WAY}


def test_a_head_with_any_kernel_is_found_wherever_it_is_registered():
    network = nn.Sequential(conv(1, 8), conv(8, NUM_HEADS), nn.Tanh(), conv(NUM_HEADS, NUM_HEADS))
    assert heads(network) == {"3": "output head: returned as it is"}
    reversed_order = nn.ModuleDict(dict(reversed([*network.named_children()])))
    reversed_order.forward = network.forward
    assert list(heads(reversed_order)) == ["3"]
    assert list(heads(reversed_order, None)) == ["1"]


def test_gates_normalised_and_hidden_layers_with_as_many_outputs_stay_sites():
    assert heads(Gated()) == {"head": FUSED}


def test_the_last_layer_of_monai_s_u_net_is_still_its_head():
    expected = "output head: last transposed convolution to 3 heads"
    assert heads(make("MONAI UNet")) == {"model.2.conv": expected}
    assert list(heads(make("MONAI residual UNet"))) == ["model.2.1.conv.unit0.conv"]


def test_a_network_runs_only_where_layers_leave_a_doubt():
    network = make("MONAI DynUNet")
    network.forward = None
    assert len(heads(network)) == 3


def test_a_network_that_fails_keeps_the_heads_that_its_layers_show():
    assert list(heads(SideOutputs(), torch.zeros(1, 2, *PATCH))) == ["fuse"]


def test_finding_heads_leaves_everything_as_it_was():
    network = SideOutputs()
    network.stages.append(nn.BatchNorm2d(8))
    network.stages[0] = nn.Sequential(network.stages[0], nn.BatchNorm2d(8), nn.Dropout(0.5))
    network.stages.pop(2)
    network.stages[1].eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        assert len(heads(network)) == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_frozen_heads_are_found():
    assert len(heads(SideOutputs().requires_grad_(requires_grad=False))) == 3
