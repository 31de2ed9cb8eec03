"""What the segmentation heads mean: mutually exclusive classes or overlapping regions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_mapo.support.errors import InputError


@dataclass(frozen=True)
class Labels:
    """Meaning of the segmentation heads of a network.

    A *label map* holds class indices, or with regions bit masks in which bit r is region r.
    """

    num_heads: int  # segmentation heads C: classes with background, or regions
    regions: tuple[tuple[int, ...], ...] | None = None  # labels of each one; None for classes
    ignore_label: int | None = None  # label whose voxels count nowhere, if there is one

    def __post_init__(self) -> None:
        if self.regions is not None and len(self.regions) > 15:
            message = (
                f"{len(self.regions)} regions, but at most 15 are valid: MAPO keeps them as bits "
                'of int16 label maps. In dataset.json leave in "labels", and in '
                '"regions_class_order", at most 15 regions, such as those that are ranked; or, '
                "where labels do not overlap, write them as plain classes, of which there may be "
                "32,767. Then plan and preprocess again."
            )
            raise InputError(message)

    @property
    def dtype(self) -> torch.dtype:
        """Smallest type that holds a label map."""
        num_values = 2**self.num_heads if self.regions is not None else self.num_heads
        return torch.uint8 if num_values <= 256 else torch.int16

    def label_map(self, logits: Tensor) -> Tensor:
        """Segmentation by logits: from `(B, C, *spatial)` to `(B, *spatial)`, of type `dtype`."""
        if self.regions is None:
            return logits.max(1).indices.to(self.dtype)  # argmax is slower on a CPU
        bits = (2 ** torch.arange(self.num_heads, device=logits.device)).to(self.dtype)
        is_on = (logits > 0).to(self.dtype)
        return (is_on * bits.view(-1, *[1] * (logits.ndim - 2))).sum(1, dtype=self.dtype)

    def target_map(self, segmentation: Tensor) -> Tensor:
        """Label map, of type `dtype`, of a ground truth in nnU-Net's labels of any shape.

        Voxels that are ignored or outside the image (< 0) become 0.
        """
        segmentation = segmentation.clamp(min=0)
        if self.regions is None:
            return segmentation.masked_fill(self.is_ignored(segmentation), 0).to(self.dtype)
        # a file's type may be too small for the bits, and for labels that are in other files only
        segmentation = segmentation.to(torch.int32)
        target = torch.zeros_like(segmentation)
        for bit, region in enumerate(self.regions):
            target += torch.isin(segmentation, torch.tensor(region).to(segmentation)) * 2**bit
        return target.to(self.dtype)

    def is_ignored(self, segmentation: Tensor) -> Tensor:
        """Mask of the ignored voxels of a ground truth in nnU-Net's labels, same shape."""
        if self.ignore_label is None:
            return torch.zeros_like(segmentation, dtype=torch.bool)
        # a file's type may be too small for the label, which torch would wrap
        return segmentation.to(torch.int32) == self.ignore_label

    def head_difference(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Heads that are on in `chosen` minus those in `rejected`: from `(B, n)` to `(B, C, n)`.

        The arguments are label maps, the result is -1, 0 or 1, int8.
        """
        heads = torch.arange(self.num_heads, device=chosen.device).view(1, -1, 1)
        chosen, rejected = chosen.unsqueeze(1), rejected.unsqueeze(1)
        if self.regions is None:
            return (chosen == heads).to(torch.int8) - (rejected == heads).to(torch.int8)
        return ((chosen >> heads) & 1).to(torch.int8) - ((rejected >> heads) & 1).to(torch.int8)
