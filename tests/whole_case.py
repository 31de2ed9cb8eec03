"""Mining as one would write it down for a case that fits into memory as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from sklearn.metrics import f1_score

from nnunetv2_mapo.method.selection import candidate_dice
from nnunetv2_mapo.method.windows import find_windows, vote
from nnunetv2_mapo.metrics.components import find_components

CPU = torch.device("cpu")


@torch.inference_mode()
def segment(miner: Any, image: torch.Tensor) -> torch.Tensor:
    """Candidates `(K, *spatial)` of an image `(channels, *spatial)`."""
    padded, inside = pad_nd_image(
        image, miner.patch_size, "constant", {"value": 0}, return_slicer=True
    )
    labels = torch.zeros((len(miner.sampler.values), *padded.shape[1:]), dtype=miner.labels.dtype)
    lead = torch.zeros(labels.shape, dtype=torch.float16)
    weight = compute_gaussian(tuple(miner.patch_size), dtype=torch.float16, device=CPU)
    windows = find_windows(padded.shape[1:], miner.patch_size, miner.config.tile_step_size)
    size = max(1, miner.images_per_forward // miner.sampler.num_passes)
    for start in range(0, len(windows), size):
        batch = windows[start : start + size]
        images = torch.stack([padded[(slice(None), *window.place)] for window in batch])
        found = miner.sampler.segment(miner.network, images, miner.labels, miner.images_per_forward)
        for window, ballots in zip(batch, found, strict=True):
            place = (slice(None), *window.place)
            vote(labels[place], lead[place], ballots, weight)
    return labels[(slice(None), *inside[1:])]


def pair_regions(
    candidates: np.ndarray, target: np.ndarray, labels: Any, tau: float, valid: np.ndarray
) -> np.ndarray:
    """Chosen, rejected and weight in hundredths of a sample of which every part is learnt from."""

    def dice(label_map: np.ndarray) -> float:
        maps, mask = torch.from_numpy(label_map)[None], torch.from_numpy(valid)
        return candidate_dice(maps, torch.from_numpy(target), labels, mask).item()

    plain, *others = candidates
    chosen, rejected, largest = plain.copy(), plain.copy(), np.zeros(plain.shape, np.float32)
    for candidate in others:
        parts = find_components((plain != candidate) & valid)
        for number in range(1, parts.max() + 1):
            part = parts == number
            effect = np.float32(dice(np.where(part, candidate, plain)) - dice(plain))
            wins = part & (abs(effect) > largest) & (part.sum() > 1)
            largest[wins] = abs(effect)
            better, worse = (candidate, plain) if effect > 0 else (plain, candidate)
            chosen[wins], rejected[wins] = better[wins], worse[wins]
    weight = np.maximum(1, np.rint(np.minimum(1, largest / tau) * 100)) * (largest > 0)
    return np.stack((chosen, rejected, weight)).astype(np.int16) * (largest > 0).any()


def class_dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """Independent of the package: scikit-learn's F1 of the foreground classes that are present."""
    present = sorted(set(np.unique(prediction)) | set(np.unique(target)) - {0})
    present = [label for label in present if label > 0]
    if not present:
        return 1.0
    return f1_score(target.ravel(), prediction.ravel(), labels=present, average="macro")
