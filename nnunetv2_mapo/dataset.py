"""How chosen and rejected travel with a case through nnU-Net's cropping and augmentation.

They are two more channels of the segmentation, so whatever moves the segmentation moves them. Right
before the first transform that is about the segmentation alone (labels to regions, downsampling for
deep supervision …) they are taken off, and put back behind the finished target.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor

from nnunetv2_mapo.store import Round

CHOSEN, REJECTED = 1, 2  # channels of the segmentation; 0 is nnU-Net's
_SEGMENTATION_ONLY = (SegOnlyTransform, MoveSegAsOneHotToDataTransform)
_KEY = "preferences"


class PreferenceDataset:
    """nnU-Net's training cases with the stack [segmentation, chosen, rejected] as segmentation.

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


def carry_preferences(transforms: BasicTransform) -> ComposeTransforms:
    """Make a trainer's training transforms carry chosen and rejected.

    Args:
        transforms: The trainer's own, applied as they are.

    Returns:
        Transforms whose segmentation is a list: nnU-Net's target (one entry, or one for each
        deep supervision scale), then chosen and rejected, shape `(2, *patch)`, int16.
    """
    steps = list(getattr(transforms, "transforms", [transforms]))
    first = next(
        (place for place, step in enumerate(steps) if isinstance(step, _SEGMENTATION_ONLY)),
        len(steps),
    )
    return ComposeTransforms(
        [DropEqual(), *steps[:first], TakeOff(), *steps[first:], PutBack()],
    )


class DropEqual(BasicTransform):  # type: ignore[misc]  # batchgeneratorsv2 ships no types
    """Take the channels off at once where they agree: then they need no augmentation."""

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Replace two equal channels by zeros of the final patch at the end, see `PutBack`."""
        segmentation = data_dict["segmentation"]
        if torch.equal(segmentation[CHOSEN], segmentation[REJECTED]):
            data_dict["segmentation"] = _without_preferences(segmentation)
            data_dict[_KEY] = None
        return data_dict


class TakeOff(BasicTransform):  # type: ignore[misc]  # batchgeneratorsv2 ships no types
    """Take chosen and rejected off the segmentation, padding removed."""

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Move the two channels to their own key."""
        if _KEY not in data_dict:
            segmentation = data_dict["segmentation"]
            preferences = segmentation[CHOSEN : REJECTED + 1]
            # Interpolation may push the padding (-1) further into one than into the other.
            preferences = preferences * (preferences.amin(0) >= 0)
            data_dict["segmentation"] = _without_preferences(segmentation)
            data_dict[_KEY] = preferences
        return data_dict


class PutBack(BasicTransform):  # type: ignore[misc]  # batchgeneratorsv2 ships no types
    """Append chosen and rejected to the finished target."""

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Make the segmentation a list that ends with the preferences."""
        target, preferences = data_dict["segmentation"], data_dict.pop(_KEY)
        if preferences is None:
            preferences = torch.zeros((2, *data_dict["image"].shape[1:]), dtype=torch.int16)
        targets = target if isinstance(target, list) else [target]
        data_dict["segmentation"] = [*targets, preferences.to(torch.int16)]
        return data_dict


def _without_preferences(segmentation: Tensor) -> Tensor:
    return torch.cat((segmentation[:CHOSEN], segmentation[REJECTED + 1 :]))


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
        nnU-Net's target, and chosen and rejected, shape `(B, 2, *patch)`; None if the batch comes
        from elsewhere (a benchmark's dummy batch).
    """
    num_targets = num_scales or 1
    if not isinstance(target, list) or len(target) != num_targets + 1:
        return Split(target, None)
    *targets, preferences = target
    return Split(targets if num_scales else targets[0], preferences)
