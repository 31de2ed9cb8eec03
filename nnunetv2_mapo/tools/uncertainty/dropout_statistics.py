"""Mean probability and share of votes of many dropout samples, in one sliding-window pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.helpers import empty_cache
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.sampling import fit_windows_per_forward, full_resolution
from nnunetv2_mapo.support.memory import is_out_of_memory


@dataclass(frozen=True)
class Sampling:
    """How the samples of an image are drawn.

    Attributes:
        num_samples: Samples S of each window, >= 1.
        rate: Dropout rate of all of them, in [0, 1).
        granularity: What dropout drops, `"element"` or `"channel"`.
        include: Patterns of further dropout sites, see `find_dropout_sites`.
        exclude: Patterns of modules without dropout.
    """

    num_samples: int
    rate: float
    granularity: str = "element"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class DropoutStatistics(nn.Module):
    """Stands in for a network inside nnU-Net's predictor: gives statistics instead of logits.

    The predictor weights and adds up what overlapping windows say, whatever the channels mean, so a
    single pass holds 2 C volumes however many samples there are.

    Attributes:
        network: The network, not compiled.
        dropout: Its dropout; to be removed afterwards.
        samples_per_forward: Samples in one forward pass; fewer from where memory ran out.
        scale: What the statistics are multiplied with.
    """

    def __init__(
        self,
        network: nn.Module,
        labels: Labels,
        sampling: Sampling,
        *,
        samples_per_forward: int,
        scale: float = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.dropout = StochasticDropout(
            network,
            labels.num_heads,
            sampling.granularity,
            include=sampling.include,
            exclude=sampling.exclude,
        )
        self.samples_per_forward, self.scale = samples_per_forward, scale
        self._has_regions, self._sampling = labels.regions is not None, sampling

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights of the network itself, such as those of another fold."""
        return self.network.load_state_dict(*args, **kwargs)

    def forward(self, window: Tensor) -> Tensor:
        """Statistics of a window.

        Args:
            window: Shape `(1, channels, *patch)`.

        Returns:
            Mean probability and share of votes of each of the C classes or regions, times `scale`,
            float32, shape `(1, 2 C, *patch)`.
        """
        while True:
            try:
                return self._sample(window)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.samples_per_forward == 1:
                    raise
            # Not in the except clause, whose traceback holds what is to be freed.
            self.samples_per_forward //= 2
            empty_cache(window.device)

    def _sample(self, window: Tensor) -> Tensor:
        num_samples, size = self._sampling.num_samples, self.samples_per_forward
        total = torch.zeros((), device=window.device)
        for start in range(0, num_samples, size):
            rates = torch.full(
                (min(size, num_samples - start),), self._sampling.rate, device=window.device
            )
            with self.dropout.at(rates):
                logits = full_resolution(self.network(window.repeat_interleave(len(rates), 0)))
            total = total + sum_samples(logits.float(), has_regions=self._has_regions)
        return total[None] / num_samples * self.scale


def sum_samples(logits: Tensor, *, has_regions: bool) -> Tensor:
    """Sums over samples of the probabilities and of the votes.

    Args:
        logits: Shape `(S, C, *patch)`, float32.
        has_regions: Whether the heads are regions: a sample votes for those with p > 0.5.

    Returns:
        Shape `(2 C, *patch)`.
    """
    if has_regions:
        probabilities = logits.sigmoid()
        votes = (logits > 0).to(logits)
    else:
        probabilities = logits.softmax(1)
        votes = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    return torch.cat([probabilities.sum(0), votes.sum(0)])


@dataclass(frozen=True)
class Sampler:
    """Gives the statistics of whole cases; of `sample_with`.

    Attributes:
        predictor: nnU-Net's, with `DropoutStatistics` in place of the network.
        scale: What the statistics are multiplied with inside it, see `find_scale`.
    """

    predictor: nnUNetPredictor
    scale: float

    def sample(self, image: Tensor) -> NDArray[np.float32]:
        """Mean probabilities and shares of votes of a case, averaged over the model's folds.

        Args:
            image: Preprocessed, shape `(channels, *spatial)`.

        Returns:
            Shape `(2 C, *spatial)`.
        """
        scaled = self.predictor.predict_logits_from_preprocessed_data(image)
        statistics: NDArray[np.float32] = (scaled.float() / self.scale).clamp(0, 1).numpy()
        return statistics


@contextmanager
def sample_with(
    predictor: nnUNetPredictor, labels: Labels, sampling: Sampling
) -> Iterator[Sampler]:
    """Give a model's network dropout inside a `with` block, and what samples with it.

    Windows and weights are those of `predictor`, but nothing is mirrored.

    Args:
        predictor: nnU-Net's, with a model; as before afterwards.
        labels: Meaning of the network's heads.
        sampling: How samples are drawn.
    """
    network = predictor.network
    if isinstance(network, OptimizedModule):
        network = network._orig_mod  # what was compiled without hooks may not see them
    statistics = DropoutStatistics(
        network,
        labels,
        sampling,
        samples_per_forward=fit_windows_per_forward(1, predictor.configuration_manager.batch_size),
        scale=find_scale(predictor.tile_step_size),
    )
    sampler = copy(predictor)
    sampler.network, sampler.use_mirroring = statistics, False
    sampler.label_manager = SimpleNamespace(num_segmentation_heads=2 * labels.num_heads)
    try:
        yield Sampler(sampler, statistics.scale)
    finally:
        statistics.dropout.remove()


def find_scale(step_size: float) -> float:
    """Largest power of two that keeps scaled probabilities within nnU-Net's sums.

    nnU-Net adds windows up in half precision, weighted by a Gaussian from 10 in their centre to
    6e-8, the least number there is, in their corners. A corner of the image that no other window
    covers would round each probability to 0 or 1. A power of two changes nothing elsewhere.

    Args:
        step_size: Of the sliding window, as a share of the patch.

    Returns:
        512 at the default step of 0.5.
    """
    # nnU-Net's windows may lie twice as dense as the step says. Along an axis weights of sigma =
    # patch / 8 then add up to at most their largest one plus their integral over the step.
    largest_sum = 10 * (1 + math.sqrt(2 * math.pi) / 8 / (step_size / 2)) ** 3
    largest_number = 0.9 * torch.finfo(torch.half).max  # with room for rounding
    return float(2 ** math.floor(math.log2(largest_number / largest_sum)))


def drops_out(network: nn.Module) -> bool:
    """Whether a network has dropout layers of its own that do anything."""
    return any(
        isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        for module in network.modules()
    )
