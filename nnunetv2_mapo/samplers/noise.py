"""Candidates from Gaussian noise on the image, of another strength each (paper, table 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunetv2_mapo.labels import Labels
from nnunetv2_mapo.sampling import full_resolution, group_candidates, repeat_windows


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
