"""Mean probability and share of votes of many dropout samples, in one sliding-window pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.sampling import fit_windows_per_forward, full_resolution
from nnunetv2_mapo.support.device import within_memory

# nnU-Net adds windows up in half precision, weighted by a Gaussian from 10 in their centre to 6e-8,
# the least number there is, in their corners: a corner of the image that no other window covers
# would round each probability to 0 or 1. At its step of half a patch, and twice as dense as that,
# weights of sigma = patch / 8 add up to at most 10 (1 + sqrt(2 pi) / 8 / 0.25)^3 = 115, and 512
# times that is below 65504, the largest half. A power of two changes nothing elsewhere.
SCALE = 512
TOO_LITTLE_MEMORY = "There is too little memory even for one sample at a time."


class DropoutStatistics(nn.Module):
    """Stands in for a network inside nnU-Net's predictor: gives statistics instead of logits.

    The predictor weights and adds up what overlapping windows say, whatever the channels mean, so a
    single pass holds 2 C volumes however many samples there are.

    Attributes:
        network: The network, not compiled.
        dropout: Its dropout.
        has_regions: Whether its heads are regions.
        num_samples: Samples of each window, >= 1.
        rate: Dropout rate of all of them, in [0, 1).
        samples_per_forward: Samples in one forward pass; fewer from where memory ran out.
    """

    def __init__(
        self, network: nn.Module, dropout: StochasticDropout, *,
        has_regions: bool, num_samples: int, rate: float, samples_per_forward: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.dropout, self.has_regions = network, dropout, has_regions
        self.num_samples, self.rate = num_samples, rate
        self.samples_per_forward = samples_per_forward

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights of the network itself, such as those of another fold."""
        return self.network.load_state_dict(*args, **kwargs)

    def forward(self, window: Tensor) -> Tensor:
        """Statistics of a window.

        Args:
            window: Shape `(1, channels, *patch)`.

        Returns:
            Mean probability and share of votes of each of the C classes or regions, times `SCALE`,
            float32, shape `(1, 2 C, *patch)`.
        """
        self.samples_per_forward, statistics = within_memory(
            lambda size: self._sample(window, size), self.samples_per_forward, window.device,
            advice=TOO_LITTLE_MEMORY, log=print,
        )  # fmt: skip
        return statistics

    def _sample(self, window: Tensor, size: int) -> Tensor:
        total = torch.zeros((), device=window.device)
        for start in range(0, self.num_samples, size):
            number = min(size, self.num_samples - start)
            with self.dropout.at(torch.full((number,), self.rate, device=window.device)):
                logits = full_resolution(self.network(window.repeat_interleave(number, 0)))
            total = total + sum_samples(logits.float(), has_regions=self.has_regions)
        return total[None] / self.num_samples * SCALE


def sum_samples(logits: Tensor, *, has_regions: bool) -> Tensor:
    """Sums over S samples of the probabilities and of the votes, of regions for p > 0.5.

    Args:
        logits: Shape `(S, C, *patch)`, float32.
        has_regions: Whether the heads are regions.

    Returns:
        Shape `(2 C, *patch)`.
    """
    if has_regions:
        probabilities, votes = logits.sigmoid(), (logits > 0).to(logits)
    else:
        probabilities = logits.softmax(1)
        votes = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    return torch.cat([probabilities.sum(0), votes.sum(0)])


@contextmanager
def sample_with(
    predictor: nnUNetPredictor, labels: Labels, mapo: Mapping[str, Any], *,
    num_samples: int, rate: float,
) -> Iterator[Callable[[Tensor], NDArray[np.float32]]]:  # fmt: skip
    """Give the network of nnU-Net's `predictor` dropout inside a `with` block, without mirroring.

    Args:
        predictor: With a model; as before afterwards.
        labels: Meaning of the network's heads.
        mapo: Settings of MAPO that it was trained with, in which those of dropout are looked up.
        num_samples: Samples of each window, >= 1.
        rate: Dropout rate of all of them, in [0, 1).

    Yields:
        Function of a preprocessed image, shape `(channels, *spatial)`: mean probabilities and
        shares of votes, averaged over the model's folds, shape `(2 C, *spatial)`.
    """
    network = predictor.network
    if isinstance(network, OptimizedModule):
        network = network._orig_mod  # what was compiled without hooks may not see them
    dropout = StochasticDropout(
        network, labels.num_heads, mapo.get("granularity", "element"),
        include=mapo.get("dropout_include", ()), exclude=mapo.get("dropout_exclude", ()),
    )  # fmt: skip
    size = fit_windows_per_forward(1, predictor.configuration_manager.batch_size)
    ours = copy(predictor)
    ours.use_mirroring = False
    ours.network = DropoutStatistics(
        network, dropout, has_regions=labels.regions is not None, num_samples=num_samples,
        rate=rate, samples_per_forward=size,
    )  # fmt: skip
    ours.label_manager = SimpleNamespace(num_segmentation_heads=2 * labels.num_heads)

    def sample(image: Tensor) -> NDArray[np.float32]:
        scaled = ours.predict_logits_from_preprocessed_data(image)
        means: NDArray[np.float32] = (scaled.float() / SCALE).clamp(0, 1).numpy()
        return means

    try:
        yield sample
    finally:
        dropout.remove()
