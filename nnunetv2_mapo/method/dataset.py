"""How chosen and rejected travel with a case through nnU-Net's cropping and augmentation.

They are more channels of the segmentation, with the weight of each voxel and, if the reference is
cached, its margin there, so whatever moves the segmentation moves them; weight and margin, which
are no labels, by nearest point. Right
before the first transform that is about the segmentation alone (labels to regions, downsampling for
deep supervision …) they are taken off, and put back behind the finished target.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor
from torch.nn.functional import grid_sample

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.loss import Disagreement, find_disagreement
from nnunetv2_mapo.method.store import MARGIN_ONE, WEIGHT_ONE, Round

CHOSEN, REJECTED, WEIGHT = 1, 2, 3  # channels of the segmentation; 0 is nnU-Net's
_SEGMENTATION_ONLY = (SegOnlyTransform, MoveSegAsOneHotToDataTransform)
# What `MoveDisagreement` needs besides `apply` and the `grid` of `get_parameters`.
_OF_SPATIAL_TRANSFORM = ("patch_size", "mode_seg", "border_mode_seg", "align_corners")
_KEY = "preferences"


def with_preferences(dataset: Any, mined: Round, cases: Collection[str] | None = None) -> Any:
    """Copy of a dataset of nnU-Net's whose segmentations are a mined round's stacks.

    In all but `load_case` it is that dataset, of any class: loaders may read more of it. Of cases
    that were not mined the segmentation stays as it is; `cases` are those that were, None: all.
    """
    preferring = copy.copy(dataset)
    preferring.load_case = partial(_load_stack, dataset, mined, cases)
    return preferring


def _load_stack(
    dataset: Any,
    mined: Round,
    cases: Collection[str] | None,
    identifier: str,
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """As nnU-Net's: image, segmentation stack, previous stage's segmentation, properties."""
    data, segmentation, *others = dataset.load_case(identifier, *args, **kwargs)
    if cases is None or identifier in cases:
        segmentation = mined.open_stack(identifier)
    return (data, segmentation, *others)


def carry_preferences(transforms: BasicTransform, num_channels: int = 2) -> ComposeTransforms:
    """Make a trainer's training transforms, applied as they are, carry chosen and rejected.

    Their segmentation becomes a list: nnU-Net's target (one entry, or one for each deep supervision
    scale), then the preferences, shape `(num_channels, *patch)`, int16: chosen and rejected, and
    what else of `stack_preferences` is behind them.
    """
    end = CHOSEN + num_channels
    steps = list(getattr(transforms, "transforms", [transforms]))
    first = next(
        (place for place, step in enumerate(steps) if isinstance(step, _SEGMENTATION_ONLY)),
        len(steps),
    )
    moving = [
        MoveDisagreement(step, end) if _can_move_disagreement(step) else step
        for step in steps[:first]
    ]
    before, after = partial(drop_equal, end), partial(take_off, end)
    put_last = partial(put_back, num_channels)
    return ComposeTransforms([before, *moving, after, *steps[first:], put_last])


def drop_equal(end: int, **data_dict: Any) -> dict[str, Any]:
    """Take the channels up to `end` off at once where they agree: they need no augmentation.

    A case that was not mined has none of them.
    """
    segmentation = data_dict["segmentation"]
    if len(segmentation) < end:  # at most with the previous stage's behind
        data_dict[_KEY] = None
    elif torch.equal(segmentation[CHOSEN], segmentation[REJECTED]):
        data_dict["segmentation"] = _without_preferences(segmentation, end)
        data_dict[_KEY] = None
    return data_dict


def take_off(end: int, **data_dict: Any) -> dict[str, Any]:
    """Move the channels up to `end` to a key of their own, padding removed."""
    if _KEY not in data_dict:
        segmentation = data_dict["segmentation"]
        preferences = segmentation[CHOSEN:end]
        # Interpolation may push the padding (-1) further into one than into the other.
        data_dict[_KEY] = preferences * (preferences[:2].amin(0) >= 0)
        data_dict["segmentation"] = _without_preferences(segmentation, end)
    return data_dict


def put_back(num_channels: int, **data_dict: Any) -> dict[str, Any]:
    """Append the preferences to the finished target; zeros where they agreed from the start."""
    target, preferences = data_dict["segmentation"], data_dict.pop(_KEY)
    if preferences is None:
        preferences = torch.zeros(num_channels, *data_dict["image"].shape[1:])
    targets = target if isinstance(target, list) else [target]
    data_dict["segmentation"] = [*targets, preferences.to(torch.int16)]
    return data_dict


def _without_preferences(segmentation: Tensor, end: int) -> Tensor:
    return torch.cat((segmentation[:CHOSEN], segmentation[end:]))


def _can_move_disagreement(step: BasicTransform) -> bool:
    """Whether `MoveDisagreement` may take the place of a transform."""
    if not isinstance(step, SpatialTransform):
        return False
    if missing := [name for name in _OF_SPATIAL_TRANSFORM if not hasattr(step, name)]:
        _warn_of_newer_version(f"SpatialTransform without {', '.join(missing)}")
        return False
    return step.mode_seg in ("bilinear", "nearest")  # they reach one voxel far


def _warn_of_newer_version(what: str) -> None:
    message = (
        f"This version of batchgeneratorsv2 has a {what}. MAPO moves chosen, rejected and their "
        "weights with the whole transform instead, which is right but takes longer."
    )
    warnings.warn(message, stacklevel=2)


class MoveDisagreement:
    """nnU-Net's spatial transform; chosen and rejected only where they can differ afterwards.

    Interpolating labels is most of the time of augmentation, and elsewhere the two would come out
    equal, which the loss does not see. There they are 0; where they differ they are what the
    transform gives, whose interpolation of labels reaches one voxel far. `end` is the first channel
    of the segmentation behind the preferences.
    """

    def __init__(self, transform: SpatialTransform, end: int = REJECTED + 1) -> None:
        self.transform = transform
        self.end = end

    def __call__(self, **data_dict: Any) -> Any:
        """Move the image and every channel of the segmentation to the patch."""
        params = self.transform.get_parameters(**data_dict)
        if "grid" not in params:
            _warn_of_newer_version("SpatialTransform whose get_parameters has no 'grid'")
        grid: Tensor | None = params.get("grid")  # None: no interpolation, the patch is a crop
        if grid is None or _KEY in data_dict:
            return self.transform.apply(data_dict, **params)
        segmentation: Tensor = data_dict["segmentation"]
        if "nchannels_seg" in data_dict:  # the slices of a volume are channels (dummy 2D)
            num_slices = len(segmentation) // data_dict["nchannels_seg"]
            place = slice(WEIGHT * num_slices, self.end * num_slices)
            values = segmentation[place].clone()  # are no labels
            segmentation[place] = 0
            moved = self.transform.apply(data_dict, **params)
            moved["segmentation"][place] = self._move_nearest(values, grid)
            return moved
        data_dict["segmentation"] = _without_preferences(segmentation, self.end)
        moved = self.transform.apply(data_dict, **params)
        rest = moved["segmentation"]
        preferences = self._move(segmentation[CHOSEN : self.end], grid)
        moved["segmentation"] = torch.cat((rest[:CHOSEN], preferences, rest[CHOSEN:]))
        return moved

    def _move(self, preferences: Tensor, grid: Tensor) -> Tensor:
        near = _dilate(preferences[0] != preferences[1])
        # the points of the patch between whose neighbours is a disagreement voxel
        near = self._move_nearest(near[None].to(torch.uint8), grid)[0].bool()
        points = grid[near]  # (num_points, dim)
        moved = preferences.new_zeros((len(preferences), *near.shape))
        if len(points):
            line = copy.copy(self.transform)
            line.patch_size = (len(points), *[1] * (points.shape[1] - 1))  # a patch of one row
            place = points.view(*line.patch_size, -1)
            row = line.apply({"segmentation": preferences[:2]}, grid=place)["segmentation"]
            moved[:2, near] = row.flatten(1)
            moved[2:, near] = self._move_nearest(preferences[2:], place).flatten(1)
        return moved

    def _move_nearest(self, values: Tensor, grid: Tensor) -> Tensor:
        """Values at the points of a grid, 0 outside the image unless the transform mirrors it."""
        border = self.transform.border_mode_seg
        padding = border if border in ("border", "reflection") else "zeros"
        moved = grid_sample(
            values[None].float(), grid[None], "nearest", padding, self.transform.align_corners
        )
        return moved[0].to(values.dtype)


def _dilate(mask: Tensor) -> Tensor:
    """Grow a mask by one voxel along every axis and diagonal."""
    for axis, length in enumerate(mask.shape):
        grown = mask.clone()
        grown.narrow(axis, 1, length - 1).logical_or_(mask.narrow(axis, 0, length - 1))
        grown.narrow(axis, 0, length - 1).logical_or_(mask.narrow(axis, 1, length - 1))
        mask = grown
    return mask


class Preferences(NamedTuple):
    """Preferences of a batch, shape `(B, *patch)`."""

    chosen: Tensor  # label maps, int16
    rejected: Tensor
    weights: Tensor  # of each voxel in [0, 1], float32
    margins: Tensor | None  # of a cached reference, in 1 / `MARGIN_ONE` logits, int16

    @classmethod
    def of(cls, channels: Tensor) -> Preferences:
        """Those of the channels that `carry_preferences` carries, shape `(B, 3 or 4, *patch)`."""
        chosen, rejected, weights, *margins = channels.unbind(1)
        return cls(chosen, rejected, weights / WEIGHT_ONE, margins[0] if margins else None)

    def find_disagreement(self, labels: Labels, likelihood: str) -> tuple[Disagreement, Tensor]:
        """Where they differ, and the cached reference's margin there, `(B, n)`; 0 if it is not."""
        found = find_disagreement(self.chosen, self.rejected, labels, likelihood, self.weights)
        if self.margins is None:
            return found, torch.zeros_like(found.weights)
        margins = self.margins.flatten(1).gather(1, found.voxels) / MARGIN_ONE
        return found, margins * (found.weights > 0)


class Split(NamedTuple):
    """A batch's target without and with what this module added."""

    target: Any
    preferences: Tensor | None


def split_preferences(target: Any, *, num_scales: int | None) -> Split:
    """Undo `put_back` on a batch's target as nnU-Net's loader gives it.

    The preferences have the shape `(B, 3 or 4, *patch)`; there are none if the batch comes from
    elsewhere (a benchmark's dummy batch). `num_scales` is None without deep supervision.
    """
    num_targets = num_scales or 1
    if not isinstance(target, list) or len(target) != num_targets + 1:
        return Split(target, None)
    *targets, preferences = target
    return Split(targets if num_scales else targets[0], preferences)
