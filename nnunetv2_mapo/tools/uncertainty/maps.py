"""Maps of a case: many dropout samples in one sliding-window pass of nnU-Net's predictor."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import SimpleITK
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from nnunetv2_mapo.method.cases import channels_of
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.sampling import full_resolution
from nnunetv2_mapo.support.device import within_memory
from nnunetv2_mapo.tools.uncertainty.measures import Maps, predictive_entropy, vote_variance

_Volume = NDArray[np.float32]
# nnU-Net adds windows up in half precision, weighted by a Gaussian from 10 in their centre to 6e-8,
# the least number there is, in their corners: a corner of the image that no other window covers
# would round each probability to 0 or 1. At its step of half a patch, and twice as dense as that,
# weights of sigma = patch / 8 add up to at most 10 (1 + sqrt(2 pi) / 8 / 0.25)^3 = 115, and 512
# times that is below 65504, the largest half. A power of two changes nothing elsewhere.
SCALE = 512


class DropoutStatistics(nn.Module):
    """Stands in for a network inside nnU-Net's predictor: gives statistics instead of logits.

    The predictor weights and adds up what overlapping windows say, whatever the channels mean, so a
    single pass holds 2 C volumes however many samples there are.

    Args:
        network: The network, not compiled; it has dropout from now on.
        labels: Meaning of its heads.
        mapo: Settings of MAPO that it was trained with, for those of dropout; may be empty.
        rates: Dropout rate of each sample of a window, in [0, 1).
        samples_per_forward: Samples in one forward pass; fewer from where memory runs out.
        images: An example, shape `(1, channels, *patch)`, which shows what its output heads are.
    """

    def __init__(
        self, network: nn.Module, labels: Labels, mapo: Mapping[str, Any], rates: Tensor,
        samples_per_forward: int, images: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.labels, self.rates = network, labels, rates
        self.samples_per_forward = samples_per_forward
        self.dropout = StochasticDropout(
            network, labels.num_heads, mapo.get("granularity", "element"),
            include=mapo.get("dropout_include", ()), exclude=mapo.get("dropout_exclude", ()),
            images=images,
        )  # fmt: skip

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights of the network itself, such as those of another fold."""
        return self.network.load_state_dict(*args, **kwargs)

    def forward(self, window: Tensor) -> Tensor:
        """Mean probability and share of votes of each of the C classes or regions, times `SCALE`.

        From shape `(1, channels, *patch)` to `(1, 2 C, *patch)`, float32.
        """
        self.samples_per_forward, sums = within_memory(
            lambda size: self._sum(window, size), self.samples_per_forward, window.device,
            advice="There is too little memory even for one sample at a time.", log=print,
        )  # fmt: skip
        return sums[None] / len(self.rates) * SCALE

    def _sum(self, window: Tensor, size: int) -> Tensor:
        """Sums over the samples, so many in a forward pass, shape `(2 C, *patch)`."""
        sums = torch.zeros((), device=window.device)
        for rates in torch.split(self.rates.to(window.device), size):
            with self.dropout.at(rates):
                logits = full_resolution(self.network(window.repeat_interleave(len(rates), 0)))
            sums = sums + sum_samples(logits.float(), self.labels)
        return sums


def sum_samples(logits: Tensor, labels: Labels) -> Tensor:
    """Sums over S samples of the probabilities and of the votes, of regions for p > 0.5.

    From logits of shape `(S, C, *patch)`, float32, to `(2 C, *patch)`.
    """
    if labels.regions is not None:
        probabilities, votes = logits.sigmoid(), (logits > 0).to(logits)
    else:
        probabilities = logits.softmax(1)
        votes = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    return torch.cat([probabilities.sum(0), votes.sum(0)])


def make_sampler(
    predictor: nnUNetPredictor, labels: Labels, mapo: Mapping[str, Any], rates: Tensor
) -> nnUNetPredictor:
    """Copy of a predictor, of `DropoutStatistics` instead of logits and without mirroring."""
    network = predictor.network
    if isinstance(network, OptimizedModule):
        network = network._orig_mod  # what was compiled without hooks may not see them
    plan, num_channels = predictor.configuration_manager, len(channels_of(predictor.dataset_json))
    size = plan.batch_size  # a training step has so many images
    device = next(network.parameters()).device
    images = torch.zeros(1, num_channels, *plan.patch_size, device=device)
    sampler = copy(predictor)
    sampler.use_mirroring = False
    sampler.network = DropoutStatistics(network, labels, mapo, rates, size, images)
    sampler.label_manager = SimpleNamespace(num_segmentation_heads=2 * labels.num_heads)
    return sampler


def make_maps(statistics: Tensor, properties: dict[str, Any], predictor: nnUNetPredictor) -> Maps:
    """Bring statistics back to the image as nnU-Net exports probabilities.

    Args:
        statistics: Of the sampler's windows, averaged, shape `(2 C, *spatial)`.
        properties: nnU-Net's, of the preprocessed case.
        predictor: With the model.
    """
    has_regions = predictor.label_manager.has_regions
    means, shares = np.split((statistics.float() / SCALE).clamp(0, 1).numpy(), 2)
    variance = vote_variance(shares, has_regions=has_regions)[None]
    # Where the image was cropped nnU-Net sets the first channel, the background, to 1 and others
    # to 0; regions have no such channel.
    background = [np.zeros_like(variance)] if has_regions else []
    volumes = np.concatenate([*background, means, variance])
    heads = {"background": 0, **{str(number): number for number in range(1, len(volumes))}}
    # In the place of the softmax, because these are probabilities but for what resampling does.
    labels = LabelManager(heads, None, inference_nonlin=lambda values: values.clamp(0, 1))
    _, exported = convert_predicted_logits_to_segmentation_with_correct_shape(
        volumes, predictor.plans_manager, predictor.configuration_manager, labels, properties,
        return_probabilities=True,
    )  # fmt: skip
    means, variance = exported[len(background) : -1], exported[-1]
    if not has_regions:
        means /= means.sum(0)
    return Maps(means, predictive_entropy(means, has_regions=has_regions), variance)


class _Floats(np.ndarray[Any, Any]):
    """Array of floats that stays one: nnU-Net's writers turn what they write into integers."""

    def astype(self, *_: Any, **__: Any) -> Any:
        return np.asarray(self, np.float32)


def write_map(
    volume: _Volume, properties: dict[str, Any], reader: type[BaseReaderWriter], path: Path
) -> None:
    """Write a map, shape `(z, y, x)`, as NIfTI with the geometry of the image, as `reader` read it.

    Photographs and stacks of TIFF have no geometry but their spacing.
    """
    if properties.keys() & {"sitk_stuff", "nibabel_stuff"}:
        reader().write_seg(volume.view(_Floats), str(path), properties)
        return
    image = SimpleITK.GetImageFromArray(volume[0] if len(volume) == 1 else volume)
    image.SetSpacing([float(size) for size in properties["spacing"][::-1][: image.GetDimension()]])
    SimpleITK.WriteImage(image, path)


def write_picture(volume: _Volume, path: Path, white: float) -> None:
    """Write a map of a single plane, shape `(1, y, x)`, as a grey picture: 0 is black."""
    grey = np.clip(volume[0] / white * 255, 0, 255).round().astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(grey), path)
