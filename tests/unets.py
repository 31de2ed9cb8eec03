"""Networks of nnU-Net, as small as they get."""

from __future__ import annotations

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}


def make_unet(
    num_dimensions: int = 2,
    architecture: type[nn.Module] = PlainConvUNet,
    norm: str = "instance",
    num_heads: int = 3,
    num_channels: int = 1,
    deep_supervision: bool = False,
) -> nn.Module:
    """Two or three stages of 4, 8 (, 8) features in evaluation mode, with the weights of seed 0."""
    num_stages = 3 if deep_supervision else 2
    blocks = "n_blocks_per_stage" if architecture is ResidualEncoderUNet else "n_conv_per_stage"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architecture(
            input_channels=num_channels,
            n_stages=num_stages,
            features_per_stage=[4, 8, 8][:num_stages],
            conv_op=CONVOLUTIONS[num_dimensions],
            kernel_sizes=3,
            strides=[1, 2, 2][:num_stages],
            num_classes=num_heads,
            n_conv_per_stage_decoder=1,
            conv_bias=True,
            norm_op=NORMS[norm][num_dimensions],
            norm_op_kwargs={"affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=deep_supervision,
            **{blocks: 1},
        ).eval()
