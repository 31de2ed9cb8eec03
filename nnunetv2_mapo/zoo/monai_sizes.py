"""Sizes of MONAI's networks from nnU-Net's plans, and the patch sizes that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.zoo.patch_sizes import PatchRule


class PlannedUNet(NamedTuple):
    """What plans say of the U-Net that nnU-Net would train; the lists have one entry a stage.

    Attributes:
        patch_size: Voxels of each axis.
        features: Channels of each stage.
        kernel_sizes: Of the convolutions.
        strides: With which each stage begins, one number an axis.
    """

    patch_size: list[int]
    features: list[int]
    kernel_sizes: list[Any]
    strides: list[list[int]]


class Sizes(NamedTuple):
    """How a network is made for plans.

    Attributes:
        arguments: Of MONAI's class, besides dimensions and channels.
        rule: What the network asks of the patch size.
    """

    arguments: dict[str, Any]
    rule: PatchRule


def read_planned_unet(patch_size: Sequence[int], planned: Mapping[str, Any]) -> PlannedUNet:
    """Read the sizes of a U-Net in plans.

    Args:
        patch_size: Of a configuration.
        planned: Its `arch_kwargs`.

    Raises:
        InputError: The plans are for a network of another kind.
    """
    names = ("features_per_stage", "kernel_sizes", "strides")
    if missing := [name for name in names if name not in planned]:
        message = (
            "MONAI's networks take their sizes from the U-Net of the plans, but the arch_kwargs of "
            f"these plans have no {', '.join(missing)}. Train with plans for a U-Net, such as "
            "those of nnUNetv2_plan_experiment (-p nnUNetPlans)."
        )
        raise InputError(message)
    strides = [np.broadcast_to(stride, len(patch_size)).tolist() for stride in planned["strides"]]
    return PlannedUNet(
        list(patch_size), list(planned["features_per_stage"]), planned["kernel_sizes"], strides
    )


def _vnet(planned: PlannedUNet) -> Sizes:
    return Sizes({}, _all_axes(planned, 16, min_positions=2))


def _dynunet(planned: PlannedUNet) -> Sizes:
    arguments = {
        "kernel_size": planned.kernel_sizes,
        "strides": planned.strides,
        "upsample_kernel_size": planned.strides[1:],
        "filters": planned.features,
    }
    return Sizes(arguments, _shrunk_by(planned.strides))


def _unetr(planned: PlannedUNet) -> Sizes:
    arguments = {"img_size": planned.patch_size, "feature_size": planned.features[0]}
    return Sizes(arguments, _all_axes(planned, 16, min_positions=1))


def _swin_unetr(planned: PlannedUNet) -> Sizes:
    arguments = {
        "img_size": planned.patch_size,  # MONAI 1.4 asks for it
        "feature_size": _round_to(12, planned.features[0]),  # MONAI takes no other
    }
    return Sizes(arguments, _all_axes(planned, 32, min_positions=2))


def _segresnet(planned: PlannedUNet) -> Sizes:
    arguments = {"init_filters": _round_to(8, planned.features[0])}  # group norm has 8 groups
    return Sizes(arguments, _all_axes(planned, 8, min_positions=1))


def _attention_unet(planned: PlannedUNet) -> Sizes:
    strides = planned.strides[1:]  # its first stage has none
    return Sizes({"channels": planned.features, "strides": strides}, _shrunk_by(strides))


def _all_axes(planned: PlannedUNet, multiple: int, *, min_positions: int) -> PatchRule:
    return PatchRule((multiple,) * len(planned.patch_size), min_positions)


def _shrunk_by(strides: Sequence[Sequence[int]]) -> PatchRule:
    return PatchRule(tuple(np.prod(strides, axis=0).tolist()), min_positions=2)


def _round_to(multiple: int, size: int) -> int:
    """Nearest multiple, at least one of it."""
    return max(1, round(size / multiple)) * multiple


NETWORKS: dict[str, Callable[[PlannedUNet], Sizes]] = {
    "VNet": _vnet,
    "DynUNet": _dynunet,
    "UNETR": _unetr,
    "SwinUNETR": _swin_unetr,
    "SegResNet": _segresnet,
    "AttentionUnet": _attention_unet,
}
