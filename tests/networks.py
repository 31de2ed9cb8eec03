"""Networks of all kinds, as small as they get, for what dropout guarantees on each of them.

Every one is 2D, has one input channel and three output heads, and takes images of 32 x 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from unets import make_unet

NUM_HEADS = 3
PATCH = (32, 32)


class TokenNetwork(nn.Module):
    """Patches of 8 x 8 as tokens, a body on `(B, tokens, features)`, and a head."""

    def __init__(self, *blocks: nn.Module, is_batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 8, 8)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.ConvTranspose2d(8, NUM_HEADS, 8, 8)
        self.is_batch_first = is_batch_first

    def forward(self, x: Tensor) -> Tensor:
        maps = self.embed(x)
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = tokens if self.is_batch_first else tokens.transpose(0, 1)
        tokens = self.blocks(tokens)
        tokens = tokens if self.is_batch_first else tokens.transpose(0, 1)
        return self.head(tokens.transpose(1, 2).reshape(maps.shape))


class MapNetwork(nn.Module):
    """A convolution, a body on feature maps, and a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(8, NUM_HEADS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class FusedAttention(nn.Module):
    """Vision transformer's attention with one layer for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
        return x + self.proj(weights @ value)


class FunctionalAttention(nn.Module):
    """Reads the rate of a dropout module that it never calls, and weights of uncalled layers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.attn_drop = nn.Linear(8, 24), nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = functional.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        rate = self.attn_drop.p if self.training else 0.0
        return x + self.proj(
            functional.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        )


class WindowAttention(nn.Module):
    """Folds windows of 4 x 4 voxels of each sample into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = FusedAttention()

    def forward(self, x: Tensor) -> Tensor:
        num_samples, channels, height, width = x.shape
        windows = x.view(num_samples, channels, height // 4, 4, width // 4, 4)
        windows = self.inner(windows.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels))
        windows = windows.view(num_samples, height // 4, width // 4, 4, 4, channels)
        return windows.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


class Mixer(nn.Module):
    """MLP-mixer block: a layer over the tokens, then one over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.over_tokens, self.over_features = nn.Linear(16, 16), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.over_features(functional.gelu(x))


class Checkpointed(nn.Module):
    """Recomputes its block in the backward pass."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.use_reentrant = use_reentrant
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_on or not torch.is_grad_enabled():
            return self.block(x)
        return checkpoint(self.block, x, use_reentrant=self.use_reentrant)


class Tied(nn.Module):
    """Two layers with one weight, and a third use of it without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.second(self.first(x)), self.first.weight.T)


class Shared(nn.Module):
    """A layer under two names that is called twice, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.all_modules = nn.Sequential(self.conv, nn.LeakyReLU(inplace=True))
        self.unused = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(self.conv(x))


class Features(NamedTuple):
    """What `Several` makes."""

    maps: Tensor
    scale: Tensor


class Several(nn.Module):
    """Takes a list that must stay one; makes a tuple, a list or a dict."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(8, 8, 3, padding=1), kind

    def forward(self, inputs: list[Tensor]) -> object:
        assert type(inputs) is list
        maps, scale = self.conv(inputs.pop()), torch.arange(3)
        made = {
            "named": Features(maps, scale),
            "list": [maps, [scale]],
            "dict": {"maps": maps, "scale": scale},
        }
        return made[self.kind]


class SeveralOutputs(nn.Module):
    """Hands lists over between its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.named, self.listed, self.keyed = Several("named"), Several("list"), Several("dict")

    def forward(self, x: Tensor) -> Tensor:
        named = self.named([x])
        assert named.scale.tolist() == [0, 1, 2]
        maps, rest = self.listed([named.maps])
        assert type(rest) is list
        return self.keyed([maps])["maps"]


class Transposed(nn.Module):
    """Down and up again, with activations in place and dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 8, 3, 2, 1, 1)
        self.act, self.off, self.on = nn.ReLU(inplace=True), nn.Dropout(0), nn.Dropout2d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.off(self.up(self.on(self.act(self.down(x))))))


class Unpicklable(nn.Module):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.act = lambda x: functional.leaky_relu(x, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class ScaleFirst(nn.Module):
    """Hands over the full resolution alone, as nnU-Net's trainers of such networks do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output = self.network(x)
        return output[:, 0] if output.ndim == 5 else output


def make_dynunet() -> nn.Module:
    network = nets.DynUNet(
        2, 1, NUM_HEADS, [3] * 4, [1, 2, 2, 2], [2] * 3, [4, 4, 8, 8],
        deep_supervision=True, deep_supr_num=2, res_block=True,
    )  # fmt: skip
    return ScaleFirst(network)


def make_encoder(*, batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return TokenNetwork(encoder, is_batch_first=batch_first)


def make_swin_unetr() -> nn.Module:
    return nets.SwinUNETR(
        1, NUM_HEADS, feature_size=12, spatial_dims=2, depths=(1, 1, 1, 1),
        num_heads=(2, 2, 2, 2), window_size=4, use_checkpoint=True, norm_name="batch",
    )  # fmt: skip


def make_unetr() -> nn.Module:
    return nets.UNETR(
        1, NUM_HEADS, PATCH, feature_size=4, hidden_size=8, mlp_dim=16, num_heads=2,
        spatial_dims=2, dropout_rate=0.5,
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nnU-Net": lambda: make_unet(deep_supervision=True),
    "nnU-Net ResEnc": lambda: make_unet(architecture=ResidualEncoderUNet, norm="batch"),
    "MONAI VNet": lambda: nets.VNet(2, 1, NUM_HEADS),
    "MONAI UNet": lambda: nets.UNet(2, 1, NUM_HEADS, (4, 8, 8), (2, 2)),
    "MONAI residual UNet": lambda: nets.UNet(
        2, 1, NUM_HEADS, (4, 8, 8), (2, 2), num_res_units=2, dropout=0.5
    ),
    "MONAI DynUNet": make_dynunet,
    "MONAI UNETR": make_unetr,
    "MONAI SwinUNETR": make_swin_unetr,
    "MONAI SegResNet": lambda: nets.SegResNet(
        2, 8, 1, NUM_HEADS, blocks_down=(1, 1), blocks_up=(1,)
    ),
    "MONAI AttentionUnet": lambda: nets.AttentionUnet(2, 1, NUM_HEADS, (4, 8, 8), (2, 2)),
    "MONAI MedNeXt": lambda: nets.MedNeXt(
        2, 4, 1, NUM_HEADS, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1)
    ),
    "fused qkv": lambda: TokenNetwork(FusedAttention(), FusedAttention()),
    "functional attention": lambda: TokenNetwork(FunctionalAttention()),
    "window attention": lambda: MapNetwork(WindowAttention()),
    "transformer": lambda: make_encoder(batch_first=True),
    "transformer, sequence first": lambda: make_encoder(batch_first=False),
    "MLP-mixer": lambda: TokenNetwork(Mixer(), Mixer()),
    "hybrid": lambda: MapNetwork(Transposed(), WindowAttention()),
    "checkpointed": lambda: MapNetwork(Checkpointed(use_reentrant=False)),
    "checkpointed, reentrant": lambda: MapNetwork(Checkpointed(use_reentrant=True)),
    "tied weights": lambda: TokenNetwork(Tied()),
    "shared layer": lambda: MapNetwork(Shared()),
    "several outputs": lambda: MapNetwork(SeveralOutputs()),
    "transposed": lambda: MapNetwork(Transposed()),
    "unpicklable": lambda: MapNetwork(Unpicklable()),
}
INCLUDED = {"several outputs": ("blocks.0.named", "blocks.0.listed", "blocks.0.keyed")}


def make(name: str) -> nn.Module:
    """A network of the zoo in evaluation mode, with the weights of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]().eval()
