"""Candidates from dropout inside the network, at another rate each (the paper's)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunetv2_mapo.dropout import StochasticDropout
from nnunetv2_mapo.labels import Labels
from nnunetv2_mapo.sampling import full_resolution, group_candidates, repeat_windows


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
