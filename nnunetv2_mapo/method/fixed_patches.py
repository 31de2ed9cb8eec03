"""The metric that ranks, on the same validation patches in each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnunetv2_mapo.method.cases import load_case
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.ranking import Ranking
from nnunetv2_mapo.method.rounds import Ranks

NUM_PATCHES = 24  # of all ranks; nnU-Net looks at 50 batches in an epoch


@dataclass(frozen=True)
class Patch:
    """A place in a validation case."""

    identifier: str
    corner: tuple[int, ...]  # its first voxel along each of the three axes; may lie outside


def choose_patches(dataset: Any, patch_size: Sequence[int], seed: int) -> list[Patch]:
    """Choose patches of nnU-Net's validation set, the same in each call.

    They take turns through the cases; each is around a voxel of the foreground if the case has some
    and in its middle otherwise.
    """
    rng = np.random.default_rng(seed)
    identifiers = sorted(dataset.identifiers)
    size, patches = _three_axes(patch_size), []
    for identifier in (identifiers * NUM_PATCHES)[:NUM_PATCHES]:
        data, _, _, properties = dataset.load_case(identifier)
        places = [p for p in properties["class_locations"].values() if len(p)]
        centre = [size // 2 for size in data.shape[1:]]
        if places:
            chosen = places[rng.integers(len(places))]
            centre = [int(place) for place in chosen[rng.integers(len(chosen))][1:]]
        corner = tuple(middle - length // 2 for middle, length in zip(centre, size, strict=True))
        patches.append(Patch(identifier, corner))
    return patches


def _three_axes(patch_size: Sequence[int]) -> tuple[int, ...]:
    return (*[1] * (3 - len(patch_size)), *patch_size)


@dataclass(frozen=True)
class FixedPatches:
    """Patches, and by what predictions of them are measured."""

    patches: Sequence[Patch]
    dataset: Any  # nnU-Net's validation set
    label_manager: Any  # nnU-Net's
    labels: Labels
    ranking: Ranking
    patch_size: Sequence[int]  # two or three axes
    spacing_mm: Sequence[float]  # of the same axes

    @torch.inference_mode()
    def measure(self, network: nn.Module, device: torch.device) -> float:
        """Mean value of the predictions of a network in evaluation mode with a single output."""
        ranks = Ranks.find()
        mine = [self._measure_patch(network, device, patch) for patch in ranks.share(self.patches)]
        values = [value for part in ranks.gather(mine) for value in part]
        return float(np.mean(values))

    def _measure_patch(self, network: nn.Module, device: torch.device, patch: Patch) -> float:
        sizes = zip(patch.corner, _three_axes(self.patch_size), strict=True)
        box = [[low, low + size] for low, size in sizes]
        image, segmentation = load_case(self.dataset, self.label_manager, patch.identifier, box)
        truth = torch.from_numpy(segmentation[0])
        if len(self.patch_size) == 2:
            image, truth = image[:, 0], truth[0]
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            logits = network(image[None].to(device))
        prediction = self.labels.label_map(logits)[0].cpu().numpy()
        target: NDArray[np.integer] = self.labels.target_map(truth).numpy()
        valid = ((truth >= 0) & ~self.labels.is_ignored(truth)).numpy()
        return self.ranking.value(prediction, target, self.spacing_mm, valid)


def fix_patches(
    config: MAPOConfig, labels: Labels, plan: Any, dataset: Any, label_manager: Any
) -> FixedPatches:
    """Patches of nnU-Net's validation set and configuration `plan` for `best_by="metric"`."""
    return FixedPatches(
        choose_patches(dataset, plan.patch_size, config.seed),
        dataset,
        label_manager,
        labels,
        Ranking.by(config.metric, config.tolerance_mm, labels),
        plan.patch_size,
        plan.spacing,
    )
