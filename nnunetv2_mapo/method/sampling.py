"""Samplers of candidates: several segmentations of the same window of the image.

`make_sampler` makes the one that the settings name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels


@dataclass(frozen=True)
class CandidateSampler(ABC):
    """Where the candidates come from: dropout, thresholds or input noise."""

    values: tuple[float, ...]  # what tells the K candidates apart; the first gives the plain one

    @property
    def num_passes(self) -> int:
        """Forward passes that the candidates of one window take."""
        return len(self.values)

    @abstractmethod
    def segment(
        self, network: nn.Module, windows: Tensor, labels: Labels, images_per_forward: int
    ) -> Tensor:
        """Candidates of each window, label maps `(W, K, *patch)`.

        The windows `(W, channels, *patch)` lie on the device of the network, the policy in
        evaluation mode. A forward pass has at most `images_per_forward` of the W K images.
        """


def full_resolution(outputs: Any) -> Tensor:
    """Logits at full resolution, whether or not the network is deeply supervised."""
    logits: Tensor = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    return logits


@dataclass(frozen=True)
class DropoutSampler(CandidateSampler):
    """Segments a window once for each dropout rate, the first 0."""

    dropout: StochasticDropout  # of the network

    def segment(
        self, network: nn.Module, windows: Tensor, labels: Labels, images_per_forward: int
    ) -> Tensor:
        """See `CandidateSampler.segment`."""
        rates = torch.tensor(self.values, device=windows.device)
        inputs = torch.split(windows.repeat_interleave(len(rates), 0), images_per_forward)
        rates_of_inputs = torch.split(rates.repeat(len(windows)), images_per_forward)
        label_maps = []
        for images, rates_of_images in zip(inputs, rates_of_inputs, strict=True):
            with self.dropout.at(rates_of_images):
                label_maps.append(labels.label_map(full_resolution(network(images))))
        return torch.cat(label_maps).view(-1, len(rates), *label_maps[0].shape[1:])


@dataclass(frozen=True)
class NoiseSampler(CandidateSampler):
    """Segments a window once for each strength of noise, the first 0.

    A value is the standard deviation σ of the noise in units of the preprocessed intensities (most
    of nnU-Net's normalisations are z-scores).
    """

    num_image_channels: int  # that get noise; behind them is a cascade's previous stage

    def segment(
        self, network: nn.Module, windows: Tensor, labels: Labels, images_per_forward: int
    ) -> Tensor:
        """See `CandidateSampler.segment`."""
        sigmas = torch.tensor(self.values, device=windows.device)
        inputs = windows.repeat_interleave(len(sigmas), 0)
        image = inputs[:, : self.num_image_channels]
        strength = sigmas.repeat(len(windows)).view(-1, *[1] * (image.ndim - 1))
        image += strength * torch.randn_like(image)
        label_maps = [
            labels.label_map(full_resolution(network(images)))
            for images in torch.split(inputs, images_per_forward)
        ]
        return torch.cat(label_maps).view(-1, len(sigmas), *label_maps[0].shape[1:])


@dataclass(frozen=True)
class ThresholdSampler(CandidateSampler):
    """Segments a window once and cuts the probabilities at each threshold, the first 0.5."""

    @property
    def num_passes(self) -> int:
        """One for all candidates."""
        return 1

    def segment(
        self, network: nn.Module, windows: Tensor, labels: Labels, images_per_forward: int
    ) -> Tensor:
        """See `CandidateSampler.segment`."""
        label_maps = [
            cut(full_resolution(network(images)).float(), self.values, labels)
            for images in torch.split(windows, images_per_forward)
        ]
        return torch.cat(label_maps)


def cut(logits: Tensor, thresholds: Sequence[float], labels: Labels) -> Tensor:
    """Label maps `(W, K, *patch)` of logits `(W, C, *patch)` at each of K thresholds in (0, 1).

    A region r is on where its probability is above the threshold θ, sigmoid(z_r) > θ. With classes
    a voxel is foreground where p_f / (p_f + p_0) > θ, and then of class f, its most probable
    foreground class; with two classes this is p_1 > θ, and θ = 0.5 is the usual argmax however many
    there are.
    """
    # p_f / (p_f + p_0) = sigmoid(z_f - z_0): no softmax is needed.
    offsets = [math.log(threshold / (1 - threshold)) for threshold in thresholds]
    if labels.regions is not None:
        return torch.stack([labels.label_map(logits - offset) for offset in offsets], 1)
    foreground, index = logits[:, 1:].max(1)
    lead, classes = foreground - logits[:, 0], (index + 1).to(labels.dtype)
    return torch.stack([classes * (lead > offset) for offset in offsets], 1)


def make_sampler(
    config: MAPOConfig, num_dimensions: int, dropout: StochasticDropout, num_image_channels: int
) -> CandidateSampler:
    """Sampler that the settings name, for a 2D or 3D configuration.

    `dropout` is of the network to be sampled, `num_image_channels` as of `NoiseSampler`.
    """
    values = config.candidates(num_dimensions).values
    if config.sampler == "threshold":
        return ThresholdSampler(values)
    if config.sampler == "noise":
        return NoiseSampler(values, num_image_channels)
    return DropoutSampler(values, dropout)
