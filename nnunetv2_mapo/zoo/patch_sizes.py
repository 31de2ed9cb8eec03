"""Patch sizes that a network can take, and the nearest ones where it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nnunetv2_mapo.support.errors import InputError


class PatchRule(NamedTuple):
    """What a network asks of a patch size.

    Attributes:
        multiples: Each axis of the patch must be a multiple of this, in voxels. It is the factor by
            which the network shrinks the axis.
        min_positions: Least number of voxels of the smallest feature map: a norm cannot normalise
            a single one.
    """

    multiples: tuple[int, ...]
    min_positions: int

    def num_positions(self, patch_size: Sequence[int]) -> int:
        """Voxels of the smallest feature map."""
        axes = zip(patch_size, self.multiples, strict=True)
        return math.prod(size // multiple for size, multiple in axes)


def check_patch_size(network: str, patch_size: Sequence[int], rule: PatchRule, plans: str) -> None:
    """Refuse a patch size that a network cannot take.

    Args:
        network: Its name, for the message.
        patch_size: Of the configuration, in voxels.
        rule: What the network asks of it.
        plans: Name of the plans, for the message.

    Raises:
        InputError: It cannot; the message says which axis, what is valid, and what to change.
    """
    axes = enumerate(zip(patch_size, rule.multiples, strict=True))
    wrong = [str(axis) for axis, (size, multiple) in axes if size % multiple]
    if wrong:
        why = f"axis {' and '.join(wrong)}: sizes must be multiples of {list(rule.multiples)}"
    elif rule.num_positions(patch_size) < rule.min_positions:
        why = (
            f"it shrinks the patch by {list(rule.multiples)} to a single voxel, "
            "which cannot be normalised"
        )
    else:
        return
    near = " or ".join(str(list(size)) for size in find_nearest_patch_sizes(patch_size, rule))
    message = (
        f"{network} cannot take the patch size {list(patch_size)} of the plans {plans} ({why}). "
        f"The nearest that it can take: {near}. In the data set's folder in nnUNet_preprocessed, "
        f'copy {plans}.json to a new name, say {network}.json, set "plans_name" to {network} and '
        f'"patch_size" of the configuration to that size in it, and train with -p {network}. '
        "Nothing has to be preprocessed again."
    )
    raise InputError(message)


def find_nearest_patch_sizes(patch_size: Sequence[int], rule: PatchRule) -> list[tuple[int, ...]]:
    """Valid patch sizes next to one that is not valid: the smaller one, then the larger one.

    Args:
        patch_size: Voxels of each axis.
        rule: What the network asks of it.
    """
    axes = list(zip(patch_size, rule.multiples, strict=True))
    smaller = [max(multiple, size // multiple * multiple) for size, multiple in axes]
    larger = [math.ceil(size / multiple) * multiple for size, multiple in axes]
    for size in (smaller, larger):
        if rule.num_positions(size) < rule.min_positions:
            size[-1] *= rule.min_positions  # one axis is enough
    return list(dict.fromkeys((tuple(smaller), tuple(larger))))
