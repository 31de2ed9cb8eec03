"""Lovász extension of the Jaccard loss (Berman, Rannen Triki, Blaschko, arXiv:1705.08790)."""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_jaccard(errors: Tensor, foreground: Tensor) -> Tensor:
    """Lovász extension of the Jaccard loss 1 - |A ∩ B| / |A ∪ B| (Definition 2).

    Where every error is 0 or 1 this is the Jaccard loss itself. A voxel with error 0 that is not
    in the foreground changes neither value nor gradient.

    Args:
        errors: Error m of each voxel, in [0, 1], shape `(*, n)`: 1 - p in the foreground, p
            elsewhere, with the probability p of the foreground.
        foreground: Ground truth A, bool, shape `(*, n)`. If it is empty, the result is the largest
            error: a single wrong voxel already has the Jaccard loss 1.

    Returns:
        Shape `(*)`. Its gradient is that of Algorithm 1.
    """
    order = errors.detach().argsort(-1, descending=True)
    increments = jaccard_increments(foreground.gather(-1, order))
    weights = torch.zeros_like(errors).scatter_(-1, order, increments.to(errors.dtype))
    return (errors * weights).sum(-1)


def jaccard_increments(foreground: Tensor) -> Tensor:
    """By how much the Jaccard loss grows as one voxel after the other is segmented wrongly.

    Args:
        foreground: Ground truth in the order of the voxels, bool, shape `(*, n)`.

    Returns:
        Vector g of Definition 2 for the first voxel, the second …, float32, shape `(*, n)`. All are
        >= 0; their sum is 1.
    """
    num_foreground = foreground.sum(-1, keepdim=True)
    intersection = (num_foreground - foreground.cumsum(-1)).float()
    union = (num_foreground + (~foreground).cumsum(-1)).float()
    # Not as differences of the loss: those of neighbours vanish in float32 among millions of voxels
    increments = torch.where(foreground, 1 / union, intersection / (union * (union - 1)))
    return increments.nan_to_num(1.0)  # 0 / 0 only where an empty foreground meets its first error
