"""Samplers of candidates, one file each; `make_sampler` makes the one that the settings name."""

from __future__ import annotations

from nnunetv2_mapo.config import MAPOConfig
from nnunetv2_mapo.dropout import StochasticDropout
from nnunetv2_mapo.samplers.dropout import DropoutSampler
from nnunetv2_mapo.samplers.noise import NoiseSampler
from nnunetv2_mapo.samplers.threshold import ThresholdSampler
from nnunetv2_mapo.sampling import Sampler

__all__ = ["make_sampler"]


def make_sampler(
    config: MAPOConfig, num_dimensions: int, dropout: StochasticDropout, num_image_channels: int
) -> Sampler:
    """Sampler that the settings name.

    Args:
        config: Settings.
        num_dimensions: Of the configuration, 2 or 3.
        dropout: Dropout of the network that is going to be sampled.
        num_image_channels: Channels of the network's input that are image; in a cascade the
            previous stage's segmentation comes behind them.
    """
    values = config.candidates(num_dimensions).values
    if config.sampler == "threshold":
        return ThresholdSampler(values)
    if config.sampler == "noise":
        return NoiseSampler(values, num_image_channels)
    return DropoutSampler(values, dropout)
