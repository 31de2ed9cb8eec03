from __future__ import annotations

import pytest

from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.zoo.monai_sizes import NETWORKS, PlannedUNet, read_planned_unet

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
