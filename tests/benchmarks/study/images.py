"""Images of the study's sizes, and which cases are trained on. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize

SAME = 0.95  # correlation of two thumbnails from which on they show the same


def shrink_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image, shape `(y, x, channels)`, to `(size, size, channels)`."""
    small = resize(image, (size, size), order=1, anti_aliasing=True, preserve_range=True)
    return np.round(small).astype(np.uint8)


def shrink_mask(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize a mask of one label, shape `(y, x)`: 1 where at least half of a pixel is inside."""
    step = mask.shape[0] / size
    if step == int(step) and mask.shape[0] == mask.shape[1]:
        blocks = (mask > 0).reshape(size, int(step), size, int(step))
        return (blocks.mean((1, 3)) >= 0.5).astype(np.uint8)
    share = resize((mask > 0).astype(float), (size, size), order=1, anti_aliasing=True)
    return (share >= 0.5).astype(np.uint8)


def find_same(thumbnails: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Pairs of images that show the same.

    Args:
        thumbnails: Grey values, shape `(cases, pixels)`.
    """
    with np.errstate(invalid="ignore"):  # an image of one colour is like no other
        correlation = np.corrcoef(thumbnails)
    first, second = np.nonzero(np.triu(correlation >= SAME, 1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def split_cases(
    names: Sequence[str],
    num_training: int,
    num_validation: int,
    *,
    group_size: int = 1,
    same: Sequence[tuple[int, int]] = (),
) -> dict[str, list[str]]:
    """Split at random, always the same; groups and cases that show the same stay together.

    Args:
        names: Case identifiers, sorted.
        num_training: Size of the first part.
        num_validation: Size of the second part; the others are left out.
        group_size: Cases in a row that are one group.
        same: Pairs of indices that show the same.

    Returns:
        Names under `"train"` and `"val"`, sorted, as in nnU-Net's `splits_final.json`.

    Raises:
        ValueError: The parts do not come out with these sizes.
    """
    group = [number // group_size for number in range(len(names))]
    for first, second in same:
        group = [group[first] if each == group[second] else each for each in group]
    order = np.random.default_rng(0).permutation(sorted(set(group))).tolist()
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for each in order:
        members = [name for name, own in zip(names, group, strict=True) if own == each]
        if len(parts["train"]) + len(members) <= num_training:
            parts["train"] += members
        elif len(parts["val"]) + len(members) <= num_validation:
            parts["val"] += members
    if (len(parts["train"]), len(parts["val"])) != (num_training, num_validation):
        sizes = ", ".join(f"{part} {len(cases)}" for part, cases in parts.items())
        message = f"groups of these sizes cannot be split as asked: {sizes}"
        raise ValueError(message)
    return {part: sorted(cases) for part, cases in parts.items()}
