"""How chosen and rejected travel with a case through nnU-Net's cropping and augmentation.

They are more channels of the segmentation, with the weight of each voxel and, if the reference is
cached, its margin there, so whatever moves the segmentation moves them; weight and margin, which
are no labels, by nearest point. Right before the first transform that is about the segmentation
alone (labels to regions, downsampling for deep supervision …) they are taken off, and put back
behind the finished target.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
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


def carry_preferences(transforms: BasicTransform, num_channels: int) -> ComposeTransforms:
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
    moving = [_move_in(step, end) for step in steps[:first]]
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
        shape = (num_channels, *data_dict["image"].shape[1:])
        preferences = torch.zeros(shape, dtype=torch.int16)
    targets = target if isinstance(target, list) else [target]
    data_dict["segmentation"] = [*targets, preferences.to(torch.int16)]
    return data_dict


def _without_preferences(segmentation: Tensor, end: int) -> Tensor:
    if len(segmentation) == end:
        return segmentation[:CHOSEN]
    return torch.cat((segmentation[:CHOSEN], segmentation[end:]))


def _move_in(step: BasicTransform, end: int) -> Any:
    """A transform with `MoveDisagreement` in the place of the spatial one, random or not."""
    if isinstance(step, RandomTransform):
        step = copy.copy(step)
        step.transform = _move_in(step.transform, end)
        return step
    return MoveDisagreement(step, end) if _can_move_disagreement(step) else step


def _can_move_disagreement(step: BasicTransform) -> bool:
    """Whether `MoveDisagreement` may take the place of a transform."""
    if not isinstance(step, SpatialTransform):
        return False
    if missing := [name for name in _OF_SPATIAL_TRANSFORM if not hasattr(step, name)]:
        _warn_of_newer_version(f"SpatialTransform without {', '.join(missing)}")
        return False
    return True


def _warn_of_newer_version(what: str) -> None:
    message = (
        f"This version of batchgeneratorsv2 has a {what}. MAPO moves chosen, rejected and their "
        "weights with the whole transform instead, which is right but takes longer, and with "
        "reference='cached' much longer: set reference='network' in MAPOConfig."
    )
    warnings.warn(message, stacklevel=2)


class MoveDisagreement:
    """nnU-Net's spatial transform with the same result, which interpolates labels where it must.

    Interpolating labels is most of the time of augmentation. Between voxels of one label it gives
    that label, as the nearest voxel does, so it is left to the points between different ones; of
    chosen and rejected, to points where they can differ afterwards. Elsewhere these two are 0: they
    would come out equal, which the loss does not see. The transform's interpolation of labels
    reaches one voxel far. `end` is the first channel of the segmentation behind the preferences.
    """

    def __init__(self, transform: SpatialTransform, end: int) -> None:
        self.transform = transform
        self.end = end

    def __call__(self, **data_dict: Any) -> Any:
        """Move the image and every channel of the segmentation to the patch."""
        params = self.transform.get_parameters(**data_dict)
        if "grid" not in params:
            _warn_of_newer_version("SpatialTransform whose get_parameters has no 'grid'")
        grid: Tensor | None = params.get("grid")  # None: no interpolation, the patch is a crop
        segmentation: Tensor = data_dict["segmentation"]
        has_preferences, is_dummy_2d = _KEY not in data_dict, "nchannels_seg" in data_dict
        is_flat = 1 in segmentation.shape[1:]  # there is nothing between its voxels
        # a dummy-2D volume's slices are channels; other modes reach further than one voxel
        as_whole = is_flat or is_dummy_2d or self.transform.mode_seg not in ("bilinear", "nearest")
        if grid is None or (as_whole and not has_preferences):
            return self.transform.apply(data_dict, **params)
        if as_whole:
            num_channels = data_dict.get("nchannels_seg", len(segmentation))
            num_slices = len(segmentation) // num_channels
            place = slice(WEIGHT * num_slices, self.end * num_slices)
            values = segmentation[place].clone()  # are no labels
            segmentation[place] = 0
            moved = self.transform.apply(data_dict, **params)
            moved["segmentation"][place] = self._move_nearest(values, grid)
            return moved
        moved = self.transform.apply({**data_dict, "segmentation": None}, **params)
        if has_preferences:
            rest = self._move_labels(_without_preferences(segmentation, self.end), grid)
            preferences = self._move_preferences(segmentation[CHOSEN : self.end], grid)
            moved["segmentation"] = torch.cat((rest[:CHOSEN], preferences, rest[CHOSEN:]))
        else:
            moved["segmentation"] = self._move_labels(segmentation, grid)
        return moved

    def _move_labels(self, labels: Tensor, grid: Tensor) -> Tensor:
        """Label maps, shape `(channels, *spatial)`, as the transform moves them."""
        is_mixed = _join_corners(labels, torch.minimum) != _join_corners(labels, torch.maximum)
        near = self._find_points(is_mixed.any(0), grid)
        moved = self._move_nearest(labels, grid)
        moved.flatten(1)[:, near] = self._interpolate(labels, grid.flatten(0, -2)[near])
        return moved

    def _move_preferences(self, preferences: Tensor, grid: Tensor) -> Tensor:
        differ = (preferences[0] != preferences[1])[None]
        near = self._find_points(_join_corners(differ, torch.logical_or)[0], grid)
        points = grid.flatten(0, -2)[near]
        labels = self._interpolate(preferences[:2], points)
        others = self._move_nearest(preferences[2:], _as_row(points)).flatten(1)
        moved = preferences.new_zeros((len(preferences), *grid.shape[:-1]))
        moved.flatten(1)[:, near] = torch.cat((labels, others))
        return moved

    def _find_points(self, cells: Tensor, grid: Tensor) -> Tensor:
        """Numbers of the points of a grid that are in a cell of a mask, or beyond all cells.

        The mask has an entry for each cell between neighbouring voxels, so one less along each
        axis, of which there are at least two.
        """
        if not self.transform.align_corners:  # the outermost voxels' centres are at ±(1 - 1 / size)
            sizes = torch.tensor(cells.shape[::-1])
            grid = grid * ((sizes + 1) / sizes)
        others = (~cells)[None, None].float()
        is_other = grid_sample(others, grid[None], "nearest", align_corners=False)
        return (is_other.flatten() == 0).nonzero()[:, 0]

    def _interpolate(self, labels: Tensor, points: Tensor) -> Tensor:
        """Label maps as the transform moves them to points `(N, dim)`, shape `(channels, N)`."""
        if len(points) == 0:
            return labels.new_zeros((len(labels), 0))
        row = _as_row(points)
        line = copy.copy(self.transform)
        line.patch_size = tuple(row.shape[:-1])
        moved: Tensor = line.apply({"segmentation": labels}, grid=row)["segmentation"]
        return moved.flatten(1)

    def _move_nearest(self, values: Tensor, grid: Tensor) -> Tensor:
        """Values at the points of a grid, beyond the image as the transform pads labels."""
        transform = self.transform
        border = transform.border_mode_seg
        padding = border if border in ("border", "reflection") else "zeros"
        moved = grid_sample(
            values[None].float(), grid[None], "nearest", padding, transform.align_corners
        )
        return moved[0].to(values.dtype)


def _as_row(points: Tensor) -> Tensor:
    """Points, shape `(N, dim)`, as the grid of a patch that is N voxels long and one wide."""
    num_points, num_axes = points.shape
    return points.view(num_points, *[1] * (num_axes - 1), num_axes)


def _join_corners(values: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What `join` makes of the corners of each cell between neighbouring voxels.

    Of values of shape `(channels, *spatial)`; the cells are one less along each axis.
    """
    for axis, length in enumerate(values.shape[1:], 1):
        values = join(values.narrow(axis, 0, length - 1), values.narrow(axis, 1, length - 1))
    return values


class Preferences(NamedTuple):
    """Preferences of a batch, shape `(B, *patch)`."""

    chosen: Tensor  # label maps, int16
    rejected: Tensor
    weights: Tensor  # w of each voxel, see `Disagreement`, float32
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
