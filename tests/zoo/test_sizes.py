from __future__ import annotations

import pytest

from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.zoo.networks import (
    NETWORKS,
    PatchRule,
    PlannedUNet,
    check_patch_size,
    find_nearest_patch_sizes,
    read_planned_unet,
)

BY_16 = PatchRule((16, 16, 16), min_positions=1)


@pytest.mark.parametrize("patch_size", [(16, 16, 16), (48, 160, 32)])
def test_multiples_pass(patch_size):
    check_patch_size("UNETR", patch_size, BY_16, "nnUNetPlans")


def test_the_message_says_which_axes_what_is_valid_and_what_to_do():
    with pytest.raises(InputError) as error:
        check_patch_size("UNETR", [24, 32, 40], BY_16, "small")
    message = str(error.value)
    assert "UNETR cannot take the patch size [24, 32, 40] of the plans small" in message
    assert "axis 0 and 2: sizes must be multiples of [16, 16, 16]" in message
    assert "[16, 32, 32] or [32, 32, 48]" in message
    assert "copy small.json to a new name" in message
    assert "-p UNETR" in message


def test_the_nearest_sizes_are_the_next_smaller_and_the_next_larger():
    # 40 lies between 2 x 16 and 3 x 16, 56 between 3 x 16 and 4 x 16; 64 fits
    assert find_nearest_patch_sizes((40, 56, 64), BY_16) == [(32, 48, 64), (48, 64, 64)]


def test_an_axis_never_shrinks_to_nothing():
    assert find_nearest_patch_sizes((5, 20, 16), BY_16) == [(16, 16, 16), (16, 32, 16)]


def test_each_axis_has_its_own_multiple():
    rule = PatchRule((1, 4, 4), min_positions=2)
    check_patch_size("DynUNet", (5, 8, 8), rule, "nnUNetPlans")
    with pytest.raises(InputError, match=r"axis 1: sizes must be multiples of \[1, 4, 4\]"):
        check_patch_size("DynUNet", (5, 6, 8), rule, "nnUNetPlans")


def test_a_single_voxel_that_a_norm_would_meet_is_refused():
    rule = PatchRule((32, 32), min_positions=2)
    check_patch_size("SwinUNETR", (32, 64), rule, "nnUNetPlans")  # 1 x 2 voxels are left
    with pytest.raises(InputError, match=r"to a single voxel.* take: \[32, 64\]\."):
        check_patch_size("SwinUNETR", (32, 32), rule, "nnUNetPlans")


def test_the_nearest_sizes_leave_enough_voxels():
    rule = PatchRule((32, 32), min_positions=2)
    # (32, 32) would leave one voxel
    assert find_nearest_patch_sizes((40, 33), rule) == [(32, 64), (64, 64)]


ANISOTROPIC = PlannedUNet(
    patch_size=[20, 64, 64],
    features=[32, 64, 128],
    kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
)


def test_dynunet_is_the_planned_unet():
    arguments, rule = NETWORKS["DynUNet"](ANISOTROPIC)
    assert arguments == {
        "kernel_size": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "upsample_kernel_size": [[1, 2, 2], [2, 2, 2]],
        "filters": [32, 64, 128],
    }
    assert rule.multiples == (2, 4, 4)  # 1 x 1 x 2, 1 x 2 x 2, 1 x 2 x 2


def test_attention_unet_has_the_planned_features_and_strides():
    arguments, rule = NETWORKS["AttentionUnet"](ANISOTROPIC)
    assert arguments == {"channels": [32, 64, 128], "strides": [[1, 2, 2], [2, 2, 2]]}
    assert rule.multiples == (2, 4, 4)


@pytest.mark.parametrize(("planned", "filters"), [(4, 8), (8, 8), (18, 16), (30, 32), (32, 32)])
def test_segresnet_has_the_nearest_multiple_of_its_8_groups(planned, filters):
    arguments, rule = NETWORKS["SegResNet"](ANISOTROPIC._replace(features=[planned]))
    assert arguments == {"init_filters": filters}
    assert rule.multiples == (8, 8, 8)


@pytest.mark.parametrize(("planned", "size"), [(4, 12), (8, 12), (24, 24), (32, 36), (64, 60)])
def test_swin_unetr_has_the_nearest_multiple_of_12(planned, size):
    arguments, rule = NETWORKS["SwinUNETR"](ANISOTROPIC._replace(features=[planned]))
    assert arguments["feature_size"] == size
    assert rule.multiples == (32, 32, 32)


def test_unetr_has_the_planned_patch_and_features():
    arguments, rule = NETWORKS["UNETR"](ANISOTROPIC._replace(patch_size=[32, 64], features=[32]))
    assert arguments == {"img_size": [32, 64], "feature_size": 32}
    assert rule == ((16, 16), 1)


def test_vnet_takes_nothing_from_the_plans():
    assert NETWORKS["VNet"](ANISOTROPIC) == ({}, ((16, 16, 16), 2))


def test_a_stride_of_one_number_holds_for_each_axis():
    planned = {"features_per_stage": [4, 8], "kernel_sizes": [3, 3], "strides": [1, [2, 2]]}
    assert read_planned_unet([16, 16], planned).strides == [[1, 1], [2, 2]]


def test_plans_of_another_kind_of_network_are_refused():
    with pytest.raises(InputError, match=r"have no kernel_sizes, strides\..*-p nnUNetPlans"):
        read_planned_unet([16, 16], {"features_per_stage": [4, 8], "patch_embed_size": 8})
