"""Samplers of candidates: several segmentations of the same window of the image.

`make_sampler` makes the one that the settings name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels


class Sampler(Protocol):
    """Where the candidates come from: dropout, thresholds, input noise.

    Attributes:
        values: What tells the K candidates apart, such as their dropout rates; the first one gives
            the plain prediction.
        num_passes: Forward passes that the candidates of one window take.
    """

    @property
    def values(self) -> tuple[float, ...]: ...  # noqa: D102  # above

    @property
    def num_passes(self) -> int: ...  # noqa: D102  # above

    def segment(self, network: nn.Module, windows: Tensor, labels: Labels) -> Tensor:
        """Candidates of each window, all windows in one forward pass.

        Args:
            network: The policy, in evaluation mode.
            windows: Shape `(W, channels, *patch)`, on the network's device.
            labels: Meaning of the logits.

        Returns:
            Label maps, shape `(W, K, *patch)`.
        """
        ...


def full_resolution(outputs: Any) -> Tensor:
    """Logits at full resolution, whether or not the network is deeply supervised."""
    logits: Tensor = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    return logits


def repeat_windows(windows: Tensor, num_candidates: int) -> Tensor:
    """Each window K times in a row, shape `(W K, channels, *patch)`."""
    return windows.repeat_interleave(num_candidates, 0)


def group_candidates(label_maps: Tensor, num_candidates: int) -> Tensor:
    """Undo `repeat_windows` on label maps: from `(W K, *patch)` to `(W, K, *patch)`."""
    return label_maps.view(-1, num_candidates, *label_maps.shape[1:])


def fit_windows_per_forward(num_passes: int, batch_size: int) -> int:
    """Windows whose candidates fit into one forward pass, >= 1.

    A forward pass without gradients needs about a quarter of a training step's memory per sample.

    Args:
        num_passes: Of the sampler, for each window.
        batch_size: Batch size of training, which fits the device.
    """
    return max(1, 4 * batch_size // num_passes)


@dataclass(frozen=True)
class DropoutSampler:
    """Segments a window once for each dropout rate.

    Attributes:
        values: Dropout rate of each candidate, the first 0.
        dropout: Dropout of the network.
    """

    values: tuple[float, ...]
    dropout: StochasticDropout

    @property
    def num_passes(self) -> int:
        """One for each candidate."""
        return len(self.values)

    def segment(self, network: nn.Module, windows: Tensor, labels: Labels) -> Tensor:
        """See `Sampler.segment`."""
        rates = torch.tensor(self.values, device=windows.device)
        with self.dropout.at(rates.repeat(len(windows))):
            outputs = network(repeat_windows(windows, len(rates)))
        return group_candidates(labels.label_map(full_resolution(outputs)), len(rates))


@dataclass(frozen=True)
class NoiseSampler:
    """Segments a window once for each strength of noise.

    Attributes:
        values: Standard deviation σ of each candidate's noise in units of the preprocessed
            intensities (most of nnU-Net's normalisations are z-scores), the first 0.
        num_image_channels: Channels that get noise; those behind are the segmentation of a
            cascade's previous stage.
    """

    values: tuple[float, ...]
    num_image_channels: int

    @property
    def num_passes(self) -> int:
        """One for each candidate."""
        return len(self.values)

    def segment(self, network: nn.Module, windows: Tensor, labels: Labels) -> Tensor:
        """See `Sampler.segment`."""
        sigmas = torch.tensor(self.values, device=windows.device)
        inputs = repeat_windows(windows, len(sigmas))
        image = inputs[:, : self.num_image_channels]
        strength = sigmas.repeat(len(windows)).view(-1, *[1] * (image.ndim - 1))
        image += strength * torch.randn_like(image)
        label_maps = labels.label_map(full_resolution(network(inputs)))
        return group_candidates(label_maps, len(sigmas))


@dataclass(frozen=True)
class ThresholdSampler:
    """Segments a window once and cuts the probabilities at each threshold.

    Attributes:
        values: Thresholds, the first 0.5.
    """

    values: tuple[float, ...]

    @property
    def num_passes(self) -> int:
        """One for all candidates."""
        return 1

    def segment(self, network: nn.Module, windows: Tensor, labels: Labels) -> Tensor:
        """See `Sampler.segment`."""
        return cut(full_resolution(network(windows)).float(), self.values, labels)


def cut(logits: Tensor, thresholds: Sequence[float], labels: Labels) -> Tensor:
    """Segmentation of logits at each threshold.

    A region r is on where its probability is above the threshold θ, sigmoid(z_r) > θ. With classes
    a voxel is foreground where p_f / (p_f + p_0) > θ, and then of class f, its most probable
    foreground class; with two classes this is p_1 > θ, and θ = 0.5 is the usual argmax however many
    there are.

    Args:
        logits: Shape `(W, C, *patch)`, float32.
        thresholds: Each in (0, 1).
        labels: Meaning of the logits.

    Returns:
        Label maps, shape `(W, K, *patch)`.
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
