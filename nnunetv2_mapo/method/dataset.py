"""How chosen and rejected travel with a case through nnU-Net's cropping and augmentation.

They are two more channels of the segmentation, or three with the weight of region pairs, so
whatever moves the segmentation moves them; the weight, which is no label, by nearest point. Right
before the first transform that is about the segmentation alone (labels to regions, downsampling for
deep supervision …) they are taken off, and put back behind the finished target.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor
from torch.nn.functional import grid_sample

from nnunetv2_mapo.method.store import WEIGHT_ONE, Round

CHOSEN, REJECTED, WEIGHT = 1, 2, 3  # channels of the segmentation; 0 is nnU-Net's
_SEGMENTATION_ONLY = (SegOnlyTransform, MoveSegAsOneHotToDataTransform)
_KEY = "preferences"


class PreferenceDataset:
    """nnU-Net's training cases with the stack of the store as segmentation.

    Args:
        dataset: nnU-Net's dataset of any kind.
        mined: Round that holds every case of `dataset`.
    """

    def __init__(self, dataset: Any, mined: Round) -> None:
        self.dataset = dataset
        self.mined = mined
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As nnU-Net's: image, segmentation stack, previous stage's segmentation, properties."""
        data, _, previous_stage, properties = self.dataset.load_case(identifier)
        return data, self.mined.open_stack(identifier), previous_stage, properties

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        return self.load_case(identifier)


def carry_preferences(transforms: BasicTransform, num_channels: int = 2) -> ComposeTransforms:
    """Make a trainer's training transforms carry chosen and rejected.

    Args:
        transforms: The trainer's own, applied as they are.
        num_channels: 2, or 3 with the weight of region pairs.

    Returns:
        Transforms whose segmentation is a list: nnU-Net's target (one entry, or one for each
        deep supervision scale), then the preferences, shape `(num_channels, *patch)`, int16.
    """
    end = CHOSEN + num_channels
    steps = list(getattr(transforms, "transforms", [transforms]))
    first = next(
        (place for place, step in enumerate(steps) if isinstance(step, _SEGMENTATION_ONLY)),
        len(steps),
    )
    moving = [
        MoveDisagreement(step, end) if _reaches_one_voxel(step) else step for step in steps[:first]
    ]
    return ComposeTransforms(
        [DropEqual(end), *moving, TakeOff(end), *steps[first:], PutBack(num_channels)]
    )


class DropEqual(BasicTransform):  # type: ignore[misc]  # batchgeneratorsv2 ships no types
    """Take the channels off at once where they agree: then they need no augmentation.

    Args:
        end: First channel of the segmentation behind the preferences.
    """

    def __init__(self, end: int) -> None:
        self.end = end

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Replace two equal channels by zeros of the final patch at the end, see `PutBack`."""
        segmentation = data_dict["segmentation"]
        if torch.equal(segmentation[CHOSEN], segmentation[REJECTED]):
            data_dict["segmentation"] = _without_preferences(segmentation, self.end)
            data_dict[_KEY] = None
        return data_dict


class MoveDisagreement(BasicTransform):  # type: ignore[misc]  # batchgeneratorsv2 ships no types
    """nnU-Net's spatial transform; chosen and rejected only where they can differ afterwards.

    Interpolating labels is most of the time of augmentation, and elsewhere the two would come out
    equal, which the loss does not see. There they are 0; where they differ they are what the
    transform gives.

    Args:
        transform: The trainer's transform; its interpolation of labels reaches one voxel far.
        end: First channel of the segmentation behind the preferences.
    """

    def __init__(self, transform: SpatialTransform, end: int = REJECTED + 1) -> None:
        self.transform = transform
        self.end = end

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw rotation, scale and crop as the transform does."""
        parameters: dict[str, Any] = self.transform.get_parameters(**data_dict)
        return parameters

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Move the image and every channel of the segmentation to the patch."""
        grid: Any = params.get("grid")  # None: no interpolation, the patch is a crop
        if grid is None or _KEY in data_dict:
            moved: dict[str, Any] = self.transform.apply(data_dict, **params)
            return moved
        if "nchannels_seg" in data_dict:  # the slices of a volume are channels (dummy 2D)
            return self._move_slices(data_dict, grid, params)
        segmentation: Tensor = data_dict["segmentation"]
        data_dict["segmentation"] = _without_preferences(segmentation, self.end)
        moved = self.transform.apply(data_dict, **params)
        rest = moved["segmentation"]
        preferences = self._move(segmentation[CHOSEN : self.end], grid)
        moved["segmentation"] = torch.cat((rest[:CHOSEN], preferences, rest[CHOSEN:]))
        return moved

    def _move_slices(
        self, data_dict: dict[str, Any], grid: Tensor, params: dict[str, Any]
    ) -> dict[str, Any]:
        """The transform as it is, but the weight, which is no label, by nearest point."""
        segmentation: Tensor = data_dict["segmentation"]
        num_slices = len(segmentation) // data_dict["nchannels_seg"]
        place = slice(WEIGHT * num_slices, self.end * num_slices)  # empty without weight
        weight = segmentation[place].clone()
        segmentation[place] = 0
        moved: dict[str, Any] = self.transform.apply(data_dict, **params)
        if len(weight):
            moved["segmentation"][place] = self._move_nearest(weight, grid)
        return moved

    def _move(self, preferences: Tensor, grid: Tensor) -> Tensor:
        near = self._near_disagreement(preferences, grid)
        points = grid[near]  # (num_points, dim)
        moved = preferences.new_zeros((len(preferences), *near.shape))
        if len(points):
            line = copy.copy(self.transform)
            line.patch_size = (len(points), *[1] * (points.shape[1] - 1))  # a patch of one row
            place = points.view(*line.patch_size, -1)
            row = line._apply_to_segmentation(preferences[:2], grid=place)
            moved[:2, near] = row.flatten(1)
            moved[2:, near] = self._move_nearest(preferences[2:], place).flatten(1)
        return moved

    def _move_nearest(self, values: Tensor, grid: Tensor) -> Tensor:
        """Values at the points of a grid, 0 outside the image unless the transform mirrors it."""
        return grid_sample(
            values[None].float(),
            grid[None],
            mode="nearest",
            padding_mode=self.transform._get_grid_sample_padding_mode(
                self.transform.border_mode_seg
            ),
            align_corners=self.transform.align_corners,
        )[0].to(values.dtype)

    def _near_disagreement(self, preferences: Tensor, grid: Tensor) -> Tensor:
        """Mark the points of the patch between whose neighbours is a disagreement voxel."""
        near = _dilate(preferences[0] != preferences[1])
        return self._move_nearest(near[None].to(torch.uint8), grid)[0].bool()


def _dilate(mask: Tensor) -> Tensor:
    """Grow a mask by one voxel along every axis and diagonal."""
    for axis, length in enumerate(mask.shape):
        grown = mask.clone()
        grown.narrow(axis, 1, length - 1).logical_or_(mask.narrow(axis, 0, length - 1))
        grown.narrow(axis, 0, length - 1).logical_or_(mask.narrow(axis, 1, length - 1))
        mask = grown
    return mask


def _reaches_one_voxel(step: BasicTransform) -> bool:
    return isinstance(step, SpatialTransform) and step.mode_seg in ("bilinear", "nearest")


class TakeOff(BasicTransform):  # type: ignore[misc]  # batchgeneratorsv2 ships no types
    """Take the preferences off the segmentation, padding removed.

    Args:
        end: First channel of the segmentation behind the preferences.
    """

    def __init__(self, end: int) -> None:
        self.end = end

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Move the channels to their own key."""
        if _KEY not in data_dict:
            segmentation = data_dict["segmentation"]
            preferences = segmentation[CHOSEN : self.end]
            # Interpolation may push the padding (-1) further into one than into the other.
            preferences = preferences * (preferences.amin(0) >= 0)
            data_dict["segmentation"] = _without_preferences(segmentation, self.end)
            data_dict[_KEY] = preferences
        return data_dict


class PutBack(BasicTransform):  # type: ignore[misc]  # batchgeneratorsv2 ships no types
    """Append the preferences to the finished target.

    Args:
        num_channels: Their number.
    """

    def __init__(self, num_channels: int) -> None:
        self.num_channels = num_channels

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Make the segmentation a list that ends with the preferences."""
        target, preferences = data_dict["segmentation"], data_dict.pop(_KEY)
        if preferences is None:
            shape = (self.num_channels, *data_dict["image"].shape[1:])
            preferences = torch.zeros(shape, dtype=torch.int16)
        targets = target if isinstance(target, list) else [target]
        data_dict["segmentation"] = [*targets, preferences.to(torch.int16)]
        return data_dict


def _without_preferences(segmentation: Tensor, end: int) -> Tensor:
    return torch.cat((segmentation[:CHOSEN], segmentation[end:]))


class Preferences(NamedTuple):
    """Preferences of a batch.

    Attributes:
        chosen: Label maps, shape `(B, *patch)`, int16.
        rejected: The same.
        weights: Weight of each voxel in [0, 1], the same shape, float32; None: 1 everywhere.
    """

    chosen: Tensor
    rejected: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, channels: Tensor) -> Preferences:
        """Those of the channels that `carry_preferences` carries, shape `(B, 2 or 3, *patch)`."""
        chosen, rejected, *weights = channels.unbind(1)
        return cls(chosen, rejected, weights[0].float() / WEIGHT_ONE if weights else None)


class Split(NamedTuple):
    """A batch's target without and with what this module added."""

    target: Any
    preferences: Tensor | None


def split_preferences(target: Any, *, num_scales: int | None) -> Split:
    """Undo `PutBack` on a batch.

    Args:
        target: Target of a batch as nnU-Net's loader gives it.
        num_scales: Number of deep supervision scales; None without deep supervision.

    Returns:
        nnU-Net's target, and the preferences, shape `(B, 2 or 3, *patch)`; None if the batch comes
        from elsewhere (a benchmark's dummy batch).
    """
    num_targets = num_scales or 1
    if not isinstance(target, list) or len(target) != num_targets + 1:
        return Split(target, None)
    *targets, preferences = target
    return Split(targets if num_scales else targets[0], preferences)
