"""Candidates from thresholds on the foreground probability (paper, table 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunetv2_mapo.labels import Labels
from nnunetv2_mapo.sampling import full_resolution


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
