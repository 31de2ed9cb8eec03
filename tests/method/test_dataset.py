"""nnU-Net's own transforms and loader run here; only their probabilities are raised.

The segmentation is binary, the image is the segmentation itself, chosen equals it and rejected is
its complement, so every misplacement between the four is visible.
"""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import (
    Convert2DTo3DTransform,
    Convert3DTo2DTransform,
)
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
)
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import (
    nnUNetTrainerNoDA,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_mapo.method import dataset as dataset_module
from nnunetv2_mapo.method.dataset import (
    MoveDisagreement,
    Preferences,
    carry_preferences,
    drop_equal,
    put_back,
    split_preferences,
    take_off,
    with_preferences,
)
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.store import Round, SampleRecord, stack_preferences

PATCH = {2: (16, 16), 3: (12, 12, 12)}
# Rotated by 45 degrees and enlarged by 1.4, the patch still lies inside: no padding.
WHOLE = {2: (48, 48), 3: (32, 32, 32)}
SCALES = {2: [[1, 1], [0.5, 0.5]], 3: [[1, 1, 1], [0.5, 0.5, 0.5], [0.5, 0.25, 0.25]]}
in_2d_and_3d = pytest.mark.parametrize("num_dimensions", [2, 3])


def blobs(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random binary shapes without symmetry, about half foreground, shape `(1, *shape)`, int16."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, *shape, generator=rng)
    pool = torch.nn.functional.avg_pool2d if len(shape) == 2 else torch.nn.functional.avg_pool3d
    smooth = pool(noise, 5, stride=1, padding=2)
    return (smooth > smooth.median()).short()


def training_transforms(num_dimensions: int, trainer=nnUNetTrainer, scales=None, **kwargs):
    """A trainer's own transforms with every spatial one switched on and intensities left alone."""
    transforms = trainer.get_training_transforms(
        PATCH[num_dimensions],
        (-np.pi, np.pi),
        scales,
        tuple(range(num_dimensions)),
        do_dummy_2d_data_aug=kwargs.pop("do_dummy_2d_data_aug", False),
        use_mask_for_norm=[False],
        **kwargs,
    )
    for step in transforms.transforms:
        if isinstance(step, SpatialTransform):
            step.p_rotation = step.p_scaling = 1
        if isinstance(step, RandomTransform):
            step.apply_probability = 0
    return transforms


def carry_pair(transforms) -> ComposeTransforms:
    """What carries chosen and rejected alone."""
    return carry_preferences(transforms, num_channels=2)


def augment(transforms, image: Tensor, segmentation: Tensor, seed: int):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 # nnU-Net draws from it
    result = transforms(image=image.clone(), segmentation=segmentation.clone())
    assert "preferences" not in result
    return result["image"], result["segmentation"]


def central_crop(volume: Tensor, shape: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(shape, 1):
        volume = volume.narrow(axis, (volume.shape[axis] - size) // 2, size)
    return volume


# Alignment ----------------------------------------------------------------------------------------


@in_2d_and_3d
def test_image_target_chosen_and_rejected_stay_aligned(num_dimensions):
    segmentation = blobs(WHOLE[num_dimensions])
    stack = torch.cat((segmentation, segmentation, 1 - segmentation))
    transforms = carry_pair(training_transforms(num_dimensions))
    for seed in range(5):
        image, (target, preferences) = augment(transforms, segmentation.float(), stack, seed)
        assert target.shape == (1, *PATCH[num_dimensions])
        assert preferences.shape == (2, *PATCH[num_dimensions])
        assert preferences.dtype == torch.int16
        chosen, rejected = preferences
        assert torch.equal(chosen, target[0])
        assert torch.equal(rejected, 1 - target[0])
        # linear interpolation of the image passes one half where the label changes
        is_clear = (image[0] - 0.5).abs() > 0.01
        assert is_clear.float().mean() > 0.9
        assert torch.equal(target[0][is_clear] == 1, image[0][is_clear] > 0.5)
        # the augmentation did something
        crop = central_crop(segmentation, PATCH[num_dimensions])
        assert (target != crop).float().mean() > 0.1


@in_2d_and_3d
@pytest.mark.parametrize("trainer", [nnUNetTrainer, nnUNetTrainerDA5, nnUNetTrainerNoDA])
def test_every_trainers_own_transforms_carry_preferences(num_dimensions, trainer):
    transforms = trainer.get_training_transforms(
        PATCH[num_dimensions], (-np.pi, np.pi), SCALES[num_dimensions],
        tuple(range(num_dimensions)), do_dummy_2d_data_aug=False, use_mask_for_norm=[True],
    )  # fmt: skip
    # NoDA does not crop
    whole = PATCH if trainer is nnUNetTrainerNoDA else WHOLE
    segmentation = blobs(whole[num_dimensions])
    stack = torch.cat((segmentation, segmentation, 1 - segmentation))
    for seed in range(4):
        _, (target, *coarser, preferences) = augment(
            carry_pair(transforms), segmentation.float(), stack, seed
        )
        assert len(coarser) == len(SCALES[num_dimensions]) - 1
        assert torch.equal(preferences[0], target[0])
        assert torch.equal(preferences[1], 1 - target[0])


@in_2d_and_3d
@pytest.mark.parametrize("mode_seg", ["bilinear", "nearest"])
@pytest.mark.parametrize("border_mode_seg", ["constant", "border", "reflection"])
def test_chosen_and_rejected_differ_exactly_where_the_plain_transform_makes_them(
    num_dimensions, mode_seg, border_mode_seg
):
    # so small a volume that the rotated patch reaches far outside
    shape = [size + 4 for size in PATCH[num_dimensions]]
    chosen = blobs(shape) + blobs(shape, seed=1)
    rejected = torch.where(blobs(shape, seed=2) * blobs(shape, seed=3) == 1, 2 - chosen, chosen)
    stack = torch.cat((chosen, chosen, rejected))
    transform = SpatialTransform(
        PATCH[num_dimensions], 0, False, p_elastic_deform=0.5, p_rotation=1, p_scaling=1,
        mode_seg=mode_seg, border_mode_seg=border_mode_seg, padding_value_seg=-1,
    )  # fmt: skip
    for seed in range(8):
        image, plain = augment(transform, stack.float(), stack, seed)
        same_image, moved = augment(MoveDisagreement(transform, 1 + 2), stack.float(), stack, seed)
        assert torch.equal(same_image, image)
        assert torch.equal(moved[0], plain[0])
        differ = plain[1] != plain[2]
        assert differ.any()
        assert not differ.all()
        assert torch.equal(moved[1:, differ], plain[1:, differ])
        assert torch.equal(moved[1, ~differ], moved[2, ~differ])


@in_2d_and_3d
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("border_mode_seg", ["constant", "border", "reflection"])
def test_label_maps_are_moved_exactly_as_by_the_plain_transform(
    num_dimensions, align_corners, border_mode_seg
):
    # two channels, as in a cascade; axes of other lengths, in which labels meet and touch the end
    shape = [size + 4 * axis for axis, size in enumerate(PATCH[num_dimensions], 1)]
    many = 3 * blobs(shape) + 2 * blobs(shape, seed=1) * blobs(shape, seed=2) - 1
    stack = torch.cat((many, blobs(shape, seed=3)))
    transform = SpatialTransform(
        PATCH[num_dimensions], 0, False, p_elastic_deform=0.5, p_rotation=1, p_scaling=1,
        scaling=(0.5, 1.6), border_mode_seg=border_mode_seg, padding_value_seg=-1,
        align_corners=align_corners,
    )  # fmt: skip
    moving = ComposeTransforms([partial(drop_equal, 1 + 2), MoveDisagreement(transform, 1 + 2)])
    equal = torch.cat((stack[:1], stack[:1], stack[:1], stack[1:]))
    for seed in range(8):
        expected_image, expected = augment(transform, stack.float(), stack, seed)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 # nnU-Net draws from it
        moved = moving(image=stack.float(), segmentation=equal)
        assert torch.equal(moved["image"], expected_image)
        assert torch.equal(moved["segmentation"], expected)
        assert len(expected.unique()) > 3


def test_a_volume_of_one_slice_is_moved_by_the_plain_transform():
    segmentation = blobs((8, 20, 20))[:, :1]
    stack = torch.cat((segmentation, segmentation, 1 - segmentation))
    transform = SpatialTransform((1, 12, 12), 0, False, p_scaling=1)
    _, plain = augment(transform, stack.float(), stack, 0)
    _, moved = augment(MoveDisagreement(transform, 1 + 2), stack.float(), stack, 0)
    assert torch.equal(moved, plain)


class Watching(SpatialTransform):
    """Counts the labels that it is asked to interpolate, each of which takes it a pass."""

    most = 0

    def apply(self, data_dict, **params):
        if (segmentation := data_dict.get("segmentation")) is not None:
            counts = [len(channel.unique()) for channel in segmentation]
            Watching.most = max(Watching.most, *counts)
        return super().apply(data_dict, **params)


@pytest.mark.parametrize("kind", ["plain", "random", "another mode", "flat", "dummy 2D"])
def test_weights_and_margins_are_never_taken_for_labels(kind):
    shape = (24, 24) if kind == "another mode" else (8, 24, 24)
    chosen = blobs(shape)[:, :1] if kind == "flat" else blobs(shape)
    weights = torch.randint(1, 100, chosen.shape).short()
    margins = torch.randint(-9999, 9999, chosen.shape).short()
    stack = torch.cat((chosen, chosen, 1 - chosen, weights, margins))
    patch = (16, 16) if kind in ("dummy 2D", "another mode") else (chosen.shape[1], 16, 16)
    mode = "bicubic" if kind == "another mode" else "bilinear"
    step = Watching(patch, 0, False, p_rotation=1, p_scaling=1, mode_seg=mode)
    steps = [RandomTransform(step, 1) if kind == "random" else step]
    if kind == "dummy 2D":
        steps = [Convert3DTo2DTransform(), *steps, Convert2DTo3DTransform()]
    Watching.most = 0
    transforms = carry_preferences(ComposeTransforms(steps), num_channels=4)
    _, (_, preferences) = augment(transforms, stack[:1].float(), stack, 0)
    assert 0 < Watching.most <= 3  # two labels and the padding
    differs = preferences[0] != preferences[1]
    assert differs.any()
    assert len(preferences[3, differs].unique()) > 10
    known = set(zip(weights.flatten().tolist(), margins.flatten().tolist(), strict=True))
    both = preferences[2:, differs & (preferences[2] > 0)].T.tolist()
    assert {tuple(each) for each in both} <= known  # of the same voxel


@pytest.mark.parametrize("name", ["patch_size", "mode_seg", "border_mode_seg", "align_corners"])
def test_nnunets_spatial_transform_has_what_moving_the_disagreement_needs(name):
    transform = SpatialTransform((4, 4), 0, False, p_rotation=1)
    assert hasattr(transform, name), f"batchgeneratorsv2's SpatialTransform has no {name} any more"
    assert "grid" in transform.get_parameters(image=torch.zeros(1, 4, 4)), (
        "the parameters of batchgeneratorsv2's SpatialTransform have no 'grid' any more"
    )


class OfAnotherVersion(SpatialTransform):
    """nnU-Net's transform whose private methods nobody but itself can find."""

    is_inside = False

    def get_parameters(self, **data_dict):
        self.is_inside = True
        parameters = super().get_parameters(**data_dict)
        self.is_inside = False
        return parameters

    def apply(self, data_dict, **params):
        self.is_inside = True
        moved = super().apply(data_dict, **params)
        self.is_inside = False
        return moved

    def __getattribute__(self, name):
        if name[0] == "_" and name[1] != "_" and not object.__getattribute__(self, "is_inside"):
            message = f"the private method {name} of batchgeneratorsv2 is gone"
            raise AttributeError(message)
        return super().__getattribute__(name)


class WithoutGrid(SpatialTransform):
    """nnU-Net's transform whose parameters have another form."""

    def get_parameters(self, **data_dict):
        return {"drawn": super().get_parameters(**data_dict)}

    def apply(self, data_dict, **params):
        return super().apply(data_dict, **params["drawn"])


def moved_by(transform_class, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Target and preferences of one patch; chosen equals the target, rejected its complement."""
    transform = transform_class(PATCH[2], 0, False, p_rotation=1, p_scaling=1)
    segmentation = blobs(WHOLE[2])
    stack = torch.cat((segmentation, segmentation, 1 - segmentation))
    transforms = carry_pair(ComposeTransforms([transform]))
    _, (target, preferences) = augment(transforms, segmentation.float(), stack, seed)
    return target, preferences


def test_no_private_method_of_batchgeneratorsv2_is_needed():
    for ours, theirs in zip(moved_by(OfAnotherVersion), moved_by(SpatialTransform), strict=True):
        assert torch.equal(ours, theirs)


def test_where_a_newer_version_lacks_something_the_plain_transform_moves_the_pairs(monkeypatch):
    expected = moved_by(SpatialTransform)
    with pytest.warns(UserWarning, match="SpatialTransform whose get_parameters has no 'grid'"):
        without_grid = moved_by(WithoutGrid)
    monkeypatch.setattr(dataset_module, "_OF_SPATIAL_TRANSFORM", ("patch_size", "gone", "lost"))
    with pytest.warns(UserWarning, match="SpatialTransform without gone, lost"):
        plain = moved_by(SpatialTransform)
    for target, (chosen, rejected) in (without_grid, plain):
        assert torch.equal(target, expected[0])
        assert torch.equal(chosen, target[0])
        assert torch.equal(rejected, 1 - target[0])


def test_preferences_are_carried_through_dummy_2d_augmentation():
    segmentation = blobs((12, 40, 40))
    stack = torch.cat((segmentation, segmentation, 1 - segmentation))
    transforms = carry_pair(training_transforms(3, do_dummy_2d_data_aug=True))
    image, (target, preferences) = augment(transforms, segmentation.float(), stack, 0)
    assert image.shape == target.shape == (1, 12, 12, 12)
    assert torch.equal(preferences[0], target[0])
    assert torch.equal(preferences[1], 1 - target[0])


def weighted_stack(shape: tuple[int, ...]) -> Tensor:
    """Weight 40 where chosen differs from rejected and is foreground, 100 where it is not, else 0.

    The weights are fewer than the labels' values and far apart: an interpolation would show.
    """
    segmentation = blobs(shape)
    rejected = torch.where(blobs(shape, seed=1) == 1, 1 - segmentation, segmentation)
    weight = (segmentation != rejected) * (100 - 60 * segmentation)
    return torch.cat((segmentation, segmentation, rejected, weight.short()))


@pytest.mark.parametrize(
    ("num_dimensions", "is_dummy_2d"), [(2, False), (3, False), (3, True)],
    ids=["2D", "3D", "dummy 2D"],
)  # fmt: skip
def test_the_weight_stays_with_its_voxels_and_is_not_interpolated(num_dimensions, is_dummy_2d):
    stack = weighted_stack((12, 40, 40) if is_dummy_2d else WHOLE[num_dimensions])
    transforms = carry_preferences(
        training_transforms(num_dimensions, do_dummy_2d_data_aug=is_dummy_2d), num_channels=3
    )
    for seed in range(3):
        _, (target, preferences) = augment(transforms, stack[:1].float(), stack, seed)
        chosen, rejected, weight = preferences
        assert torch.equal(chosen[chosen != rejected], target[0][chosen != rejected])
        assert set(weight.unique().tolist()) == {0, 40, 100}
        # the labels are interpolated and the weight is not: they part at borders alone
        disagreeing = chosen != rejected
        is_right = weight == torch.where(disagreeing, 100 - 60 * chosen, 0)
        assert is_right.float().mean() > 0.8
        assert (weight[disagreeing] > 0).float().mean() > 0.7


@in_2d_and_3d
def test_a_patch_without_any_of_the_disagreement_has_zeros(num_dimensions):
    stack = torch.zeros(5, *WHOLE[num_dimensions], dtype=torch.int16)
    corner = (0,) * num_dimensions
    stack[(2, *corner)], stack[(3, *corner)], stack[(4, *corner)] = 1, 100, 7
    transforms = carry_preferences(training_transforms(num_dimensions), num_channels=4)
    for seed in range(3):
        _, (_, preferences) = augment(transforms, stack[:1].float(), stack, seed)
        assert preferences.shape == (4, *PATCH[num_dimensions])
        assert not preferences.any()


@in_2d_and_3d
def test_preferences_without_rotation_are_cropped_with_their_weight(num_dimensions):
    stack = weighted_stack(WHOLE[num_dimensions])
    transforms = training_transforms(num_dimensions)
    for step in transforms.transforms:
        if isinstance(step, SpatialTransform):
            step.p_rotation = step.p_scaling = 0
    image, (target, preferences) = augment(
        carry_preferences(transforms, num_channels=3), stack[:1].float(), stack, 0
    )
    assert torch.equal(target[0].float(), image[0])
    chosen, rejected, weight = preferences
    assert torch.equal(chosen, target[0])
    assert torch.equal(weight, (chosen != rejected) * (100 - 60 * chosen))


def test_preferences_of_a_batch_have_weights_from_0_to_1():
    channels = torch.tensor([[[1, 2], [3, 4], [50, 100], [-256, 64]]], dtype=torch.int16)
    chosen, rejected, weights, margins = Preferences.of(channels)
    assert (chosen.tolist(), rejected.tolist()) == ([[1, 2]], [[3, 4]])
    assert weights.tolist() == [[0.5, 1.0]]
    assert margins.tolist() == [[-256, 64]]
    assert Preferences.of(channels[:, :3]).margins is None


def test_margins_of_a_cached_reference_are_in_logits_at_the_disagreement_voxels():
    channels = torch.zeros(2, 4, 2, 2, dtype=torch.int16)
    channels[0, 0, 0, 1] = 1  # chosen 1, rejected 0
    channels[0, 2:, 0, 1] = torch.tensor([100, -384])  # -1.5 logits
    channels[0, 3, 0, 0] = 512  # the padding of other patches points there
    channels[1, :, 1] = torch.tensor([[1, 0], [0, 1], [50, 50], [128, 32]])
    labels = Labels(2)
    found, margins = Preferences.of(channels).find_disagreement(labels, "voxel")
    assert found.num_disagreeing.tolist() == [1, 2]
    assert margins.tolist() == [[-1.5, 0.0], [0.5, 0.125]]
    _, none = Preferences.of(channels[:, :3]).find_disagreement(labels, "voxel")
    assert none.tolist() == [[0, 0], [0, 0]]


@in_2d_and_3d
@pytest.mark.parametrize("has_pair", [False, True])
@pytest.mark.parametrize("has_deep_supervision", [False, True])
def test_image_and_target_are_exactly_those_of_stock_nnunet(
    num_dimensions, has_pair, has_deep_supervision
):
    scales = SCALES[num_dimensions] if has_deep_supervision else None
    segmentation = blobs(PATCH[num_dimensions])  # as large as the patch: with padding
    stack = torch.cat((segmentation, segmentation, segmentation))
    if has_pair:
        stack[2] = 1 - segmentation[0]
    image = torch.randn(1, *PATCH[num_dimensions])
    for seed in range(3):
        stock = nnUNetTrainer.get_training_transforms(
            PATCH[num_dimensions], (-np.pi, np.pi), scales, tuple(range(num_dimensions)),
            do_dummy_2d_data_aug=False, use_mask_for_norm=[True],
        )  # fmt: skip
        expected_image, expected = augment(stock, image, segmentation, seed)
        got_image, (*targets, _) = augment(carry_pair(stock), image, stack, seed)
        assert torch.equal(got_image, expected_image)
        expected = expected if has_deep_supervision else [expected]
        assert len(targets) == len(expected)
        for ours, theirs in zip(targets, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


# What happens to the target alone -----------------------------------------------------------------


@in_2d_and_3d
def test_regions_are_made_of_the_target_and_not_of_the_preferences(num_dimensions):
    ignored = 3
    segmentation = blobs(WHOLE[num_dimensions], 0) + blobs(WHOLE[num_dimensions], 1)
    segmentation[blobs(WHOLE[num_dimensions], 2) * (segmentation == 2) == 1] = ignored
    # bit masks in the order of the labels, so that interpolation treats both alike
    chosen = torch.tensor([0b00, 0b01, 0b11, 0b111], dtype=torch.int16)[segmentation.long()]
    stack = torch.cat((segmentation, chosen, torch.zeros_like(chosen)))
    transforms = carry_pair(
        training_transforms(num_dimensions, regions=[(1, 2), (2,)], ignore_label=ignored)
    )
    _, (target, preferences) = augment(transforms, segmentation.float(), stack, 0)
    assert target.dtype == torch.bool
    assert target.shape[0] == 3  # two regions, then the ignore mask
    assert preferences.dtype == torch.int16
    assert set(preferences[0].unique().tolist()) == {0b00, 0b01, 0b11, 0b111}
    assert torch.equal(preferences[0] == 0b111, target[2])
    counted = ~target[2]
    assert torch.equal((preferences[0] & 1 == 1)[counted], target[0][counted])
    assert torch.equal((preferences[0] & 2 == 2)[counted], target[1][counted])
    assert preferences[1].max() == 0


@in_2d_and_3d
def test_deep_supervision_downsamples_the_target_and_not_the_preferences(num_dimensions):
    scales = SCALES[num_dimensions]
    segmentation = blobs(WHOLE[num_dimensions])
    stack = torch.cat((segmentation, segmentation, 1 - segmentation))
    transforms = carry_pair(training_transforms(num_dimensions, scales=scales))
    _, (*targets, preferences) = augment(transforms, segmentation.float(), stack, 0)
    assert [target.shape[1:] for target in targets] == [
        tuple(int(size * share) for size, share in zip(PATCH[num_dimensions], scale, strict=True))
        for scale in scales
    ]
    assert preferences.shape == (2, *PATCH[num_dimensions])
    assert torch.equal(preferences[0], targets[0][0])


@in_2d_and_3d
@pytest.mark.parametrize("has_pair", [False, True])
def test_the_previous_stage_still_reaches_the_image_in_a_cascade(num_dimensions, has_pair):
    segmentation = blobs(WHOLE[num_dimensions])
    rejected = 1 - segmentation if has_pair else segmentation
    previous_stage = 1 - segmentation
    # the loader appends the previous stage to the whole stack
    stack = torch.cat((segmentation, segmentation, rejected, previous_stage))
    transforms = carry_pair(
        training_transforms(num_dimensions, is_cascaded=True, foreground_labels=[1])
    )
    image, (target, preferences) = augment(transforms, segmentation.float(), stack, 0)
    assert image.shape == (2, *PATCH[num_dimensions])
    assert target.shape == (1, *PATCH[num_dimensions])
    assert torch.equal(image[1], 1 - target[0].float())
    if has_pair:
        assert torch.equal(preferences[0], target[0])
        assert torch.equal(preferences[1], 1 - target[0])
    else:
        assert preferences.abs().max() == 0


def test_preferences_are_taken_off_before_the_first_segmentation_only_transform():
    for step in (
        RemoveLabelTransform(-1, 0),
        MoveSegAsOneHotToDataTransform(1, [1]),
    ):
        transforms = carry_pair(ComposeTransforms([step]))
        drop, take, inner, put = transforms.transforms
        assert (drop.func, take.func, put.func) == (drop_equal, take_off, put_back)
        assert inner is step


def test_a_single_transform_is_wrapped_too():
    stack = torch.tensor([[[5, 1]], [[5, 1]], [[0, 5]]], dtype=torch.int16)
    image = torch.zeros(1, 1, 2)
    _, (target, preferences) = augment(carry_pair(RemoveLabelTransform(5, 0)), image, stack, 0)
    assert target.tolist() == [[[0, 1]]]
    assert preferences.tolist() == [[[5, 1]], [[0, 5]]]


# No disagreement ----------------------------------------------------------------------------------


@in_2d_and_3d
def test_equal_preferences_become_zeros_of_the_final_patch(num_dimensions):
    segmentation = blobs(WHOLE[num_dimensions])
    stack = torch.cat((segmentation, segmentation, segmentation))
    transforms = carry_pair(training_transforms(num_dimensions))
    _, (target, preferences) = augment(transforms, segmentation.float(), stack, 0)
    assert preferences.shape == (2, *PATCH[num_dimensions])
    assert preferences.dtype == torch.int16
    assert preferences.abs().max() == 0
    assert target.max() == 1


def test_a_voxel_that_is_padding_in_one_channel_only_does_not_disagree():
    stack = torch.tensor([[[1, 1, 1, -1]], [[-1, 2, 1, -1]], [[0, -1, 0, -1]]], dtype=torch.int16)
    _, (target, preferences) = augment(
        carry_pair(ComposeTransforms([])), torch.zeros(1, 1, 4), stack, 0
    )
    assert preferences.tolist() == [[[0, 0, 1, 0]], [[0, 0, 0, 0]]]
    assert target.tolist() == [[[1, 1, 1, -1]]]


@in_2d_and_3d
def test_padding_never_disagrees_and_the_whole_image_does(num_dimensions):
    inside = torch.ones(1, *[6] * num_dimensions)
    padded = torch.nn.functional.pad(inside, [5] * 2 * num_dimensions)
    chosen = torch.where(padded == 1, 2, -1)
    stack = torch.cat((chosen, chosen, torch.where(padded == 1, 0, -1))).short()
    transforms = carry_pair(training_transforms(num_dimensions))
    for seed in range(5):
        # the patch is larger than the image, so rotation reaches beyond the padding too
        image, (_, preferences) = augment(transforms, padded, stack, seed)
        differs = preferences[0] != preferences[1]
        assert torch.equal(differs[image[0] < 0.49].unique(), torch.tensor([False]))
        assert torch.equal(differs[image[0] > 0.51].unique(), torch.tensor([True]))


# Dataset and loader -------------------------------------------------------------------------------


LABELS = LabelManager({"background": 0, "tumour": 1}, None)


def write_dataset(folder, shape: tuple[int, ...], num_cases: int = 2, is_cascaded: bool = False):
    """nnU-Net's dataset and a mined round with chosen = target and rejected = its complement."""
    mined = Round(folder / "round_01", {"round": 1})
    previous = folder / "previous"
    previous.mkdir()
    for number in range(num_cases):
        segmentation = blobs(shape, number).numpy()
        blocks = (1, *shape)
        nnUNetDatasetBlosc2.save_case(
            segmentation.astype(np.float32),
            segmentation,
            {},
            str(folder / f"case_{number}"),
            blocks, blocks, blocks, blocks,
        )  # fmt: skip
        foreground = np.argwhere(segmentation == 1)
        write_pickle({"class_locations": {1: foreground}}, str(folder / f"case_{number}.pkl"))
        nnUNetDatasetBlosc2.save_seg(
            1 - segmentation[0], str(previous / f"case_{number}"), blocks[1:], blocks[1:]
        )
        stack = stack_preferences(segmentation, segmentation[0], 1 - segmentation[0])
        record = SampleRecord([1.0, 0.0], 0, 1, segmentation.size, segmentation.size)
        mined.write_case(f"case_{number}", stack, [record], (16, 16))
    identifiers = [f"case_{number}" for number in range(num_cases)]
    stage = str(previous) if is_cascaded else None
    return nnUNetDatasetBlosc2(str(folder), identifiers, stage), mined


def load_batch(dataset, num_dimensions: int, transforms, batch_size: int = 4):
    initial = {2: (24, 24), 3: (18, 18, 18)}[num_dimensions]
    loader = nnUNetDataLoader(
        dataset, batch_size, initial, PATCH[num_dimensions], LABELS, 0.5, transforms=transforms
    )
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 # nnU-Net draws from it
    return next(loader)


def test_a_case_has_the_mined_stack_as_segmentation_and_all_else_from_nnunet(tmp_path):
    dataset, mined = write_dataset(tmp_path, (6, 10, 8))
    preferences = with_preferences(dataset, mined)
    assert preferences.identifiers == ["case_0", "case_1"]
    for load in (preferences.load_case, preferences.__getitem__):
        data, segmentation, previous_stage, properties = load("case_1")
        stock_data, stock_segmentation, _, stock_properties = dataset.load_case("case_1")
        assert np.array_equal(data[:], stock_data[:])
        assert segmentation.shape == (3, 6, 10, 8)
        assert np.array_equal(segmentation[:1], stock_segmentation[:])
        assert np.array_equal(segmentation[2], 1 - stock_segmentation[0])
        assert previous_stage is None
        assert properties.keys() == stock_properties.keys()


def test_datasets_of_npz_files_are_wrapped_too(tmp_path):
    _, mined = write_dataset(tmp_path, (6, 7, 5), num_cases=1)
    folder = tmp_path / "npz"
    folder.mkdir()
    image = np.ones((1, 6, 7, 5), np.float32)
    nnUNetDatasetNumpy.save_case(image, image.astype(np.int16), {"a": 1}, str(folder / "case_0"))
    dataset = with_preferences(nnUNetDatasetNumpy(str(folder)), mined)
    data, segmentation, _, properties = dataset.load_case("case_0")
    assert np.array_equal(data[:], image)
    assert np.array_equal(segmentation[:], mined.open_stack("case_0")[:])
    assert properties == {"a": 1}


def test_a_dataset_with_preferences_pickles_for_spawned_workers(tmp_path):
    dataset, mined = write_dataset(tmp_path, (6, 10, 8))
    copy = pickle.loads(pickle.dumps(with_preferences(dataset, mined)))
    assert copy.identifiers == ["case_0", "case_1"]
    assert np.array_equal(copy.load_case("case_0")[1][:], mined.open_stack("case_0")[:])


def test_transforms_that_carry_preferences_pickle_for_spawned_workers():
    transforms = carry_pair(training_transforms(2))
    segmentation = blobs(WHOLE[2])
    stack = torch.cat((segmentation, segmentation, 1 - segmentation))
    results = [
        augment(steps, segmentation.float(), stack, 0)[1][1]
        for steps in (transforms, pickle.loads(pickle.dumps(transforms)))
    ]
    assert torch.equal(*results)


@in_2d_and_3d
@pytest.mark.parametrize("has_deep_supervision", [False, True])
def test_nnunets_loader_crops_and_pads_preferences_with_the_image(
    tmp_path, num_dimensions, has_deep_supervision
):
    # larger than the patch in one axis, smaller in another: cropped and padded
    shape = (6, 40, 14) if num_dimensions == 2 else (30, 10, 20)
    dataset, mined = write_dataset(tmp_path, shape)
    scales = SCALES[num_dimensions] if has_deep_supervision else None
    transforms = carry_pair(training_transforms(num_dimensions, scales=scales))
    batch = load_batch(with_preferences(dataset, mined), num_dimensions, transforms)
    target, preferences = split_preferences(batch["target"], num_scales=scales and len(scales))
    if has_deep_supervision:
        assert [part.shape[0] for part in target] == [4] * len(scales)
        target = target[0]
    assert target.shape == (4, 1, *PATCH[num_dimensions])
    assert preferences.shape == (4, 2, *PATCH[num_dimensions])
    assert preferences.dtype == torch.int16
    chosen, rejected = preferences.unbind(1)
    differs = chosen != rejected
    assert 0.3 < differs.float().mean() < 0.95
    assert torch.equal(chosen[differs], target[:, 0][differs])
    assert torch.equal(rejected[differs], 1 - target[:, 0][differs])
    assert chosen[~differs].abs().max() == 0


@in_2d_and_3d
def test_nnunets_loader_stacks_the_previous_stage_behind_the_preferences(tmp_path, num_dimensions):
    shape = (6, 40, 40) if num_dimensions == 2 else (30, 30, 30)
    dataset, mined = write_dataset(tmp_path, shape, is_cascaded=True)
    transforms = carry_pair(
        training_transforms(num_dimensions, is_cascaded=True, foreground_labels=[1])
    )
    batch = load_batch(with_preferences(dataset, mined), num_dimensions, transforms)
    target, preferences = split_preferences(batch["target"], num_scales=None)
    assert batch["data"].shape == (4, 2, *PATCH[num_dimensions])
    differs = preferences[:, 0] != preferences[:, 1]
    # inside the image, previous stage = complement of the target = rejected
    assert differs.float().mean() > 0.5
    assert torch.equal(batch["data"][:, 1][differs], 1 - target[:, 0][differs].float())
    assert torch.equal(batch["data"][:, 1][differs], preferences[:, 1][differs].float())


@in_2d_and_3d
@pytest.mark.parametrize("is_cascaded", [False, True])
def test_a_case_that_was_not_mined_is_as_nnunets_and_has_no_preferences(
    tmp_path, num_dimensions, is_cascaded
):
    shape = (6, 40, 40) if num_dimensions == 2 else (30, 30, 30)
    dataset, mined = write_dataset(tmp_path, shape, is_cascaded=is_cascaded)
    mined.path("case_1").unlink()
    some = pickle.loads(pickle.dumps(with_preferences(dataset, mined, frozenset({"case_0"}))))
    assert np.array_equal(some.load_case("case_1")[1][:], dataset.load_case("case_1")[1][:])
    options = {"is_cascaded": True, "foreground_labels": [1]} if is_cascaded else {}
    transforms = carry_pair(training_transforms(num_dimensions, **options))
    batch = load_batch(some, num_dimensions, transforms, batch_size=8)
    target, preferences = split_preferences(batch["target"], num_scales=None)
    is_mined = torch.tensor([key == "case_0" for key in batch["keys"]])
    assert 0 < is_mined.sum() < 8
    assert (preferences[is_mined, 0] != preferences[is_mined, 1]).flatten(1).any(1).all()
    assert not preferences[~is_mined].any()
    assert (target[~is_mined] == 1).flatten(1).any(1).all()  # its segmentation is there
    if is_cascaded:  # the previous stage is the complement of the segmentation
        inside = batch["data"][~is_mined][:, 1] == 1
        assert inside.any()
        assert not (target[~is_mined][:, 0][inside] == 1).any()


# Split --------------------------------------------------------------------------------------------


def test_split_without_deep_supervision_gives_a_tensor():
    target, preferences = torch.zeros(2, 1, 4), torch.ones(2, 2, 4)
    split = split_preferences([target, preferences], num_scales=None)
    assert split.target is target
    assert split.preferences is preferences


def test_split_with_deep_supervision_gives_a_list():
    targets, preferences = [torch.zeros(2, 1, 4), torch.zeros(2, 1, 2)], torch.ones(2, 2, 4)
    split = split_preferences([*targets, preferences], num_scales=2)
    assert split.target == targets
    assert split.preferences is preferences


def test_split_of_one_scale_gives_a_list_of_one():
    target, preferences = torch.zeros(2, 1, 4), torch.ones(2, 2, 4)
    split = split_preferences([target, preferences], num_scales=1)
    assert isinstance(split.target, list)
    assert split.target[0] is target


@pytest.mark.parametrize("num_scales", [None, 2])
def test_a_target_from_elsewhere_has_no_preferences(num_scales):
    tensor = torch.zeros(2, 1, 4)
    target = tensor if num_scales is None else [tensor, tensor]
    split = split_preferences(target, num_scales=num_scales)
    assert split.target is target
    assert split.preferences is None
