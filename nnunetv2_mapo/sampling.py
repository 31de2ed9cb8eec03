"""Candidate segmentations of a window of the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nnunetv2_mapo.dropout import StochasticDropout
from nnunetv2_mapo.labels import Labels


def full_resolution(outputs: Any) -> Tensor:
    """Logits at full resolution, whether or not the network is deeply supervised."""
    logits: Tensor = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    return logits


def dropout_candidates(
    network: nn.Module, dropout: StochasticDropout, windows: Tensor, rates: Tensor, labels: Labels
) -> Tensor:
    """Segment each window once for each dropout rate, all in one forward pass.

    Args:
        network: The policy, in evaluation mode.
        dropout: Its dropout.
        windows: Shape `(W, channels, *patch)`.
        rates: Dropout rate of each candidate, shape `(K,)`, on the windows' device.
        labels: Meaning of the logits.

    Returns:
        Label maps, shape `(W, K, *patch)`.
    """
    num_windows, num_candidates = len(windows), len(rates)
    with dropout.at(rates.repeat(num_windows)):
        outputs = network(windows.repeat_interleave(num_candidates, 0))
    candidates = labels.label_map(full_resolution(outputs))
    return candidates.view(num_windows, num_candidates, *windows.shape[2:])


def fit_windows_per_forward(num_candidates: int, batch_size: int) -> int:
    """Windows whose candidates fit into one forward pass, >= 1.

    A forward pass without gradients needs about a quarter of a training step's memory per sample.

    Args:
        num_candidates: Candidates K of a window.
        batch_size: Batch size of training, which fits the device.
    """
    return max(1, 4 * batch_size // num_candidates)
