"""Networks of MONAI for nnU-Net trainers: sizes from the plans, the rest MONAI's defaults."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (  # noqa: E501  # nnU-Net's names
    nnUNetTrainerNoDeepSupervision,
)
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_mapo.support.errors import InputError

VNET_FEATURES = 16  # of its first block, which adds the input channels, repeated to as many


class PatchRule(NamedTuple):
    """What a network asks of a patch size.

    Attributes:
        multiples: Each axis of the patch must be a multiple of this, in voxels. It is the factor by
            which the network shrinks the axis.
        min_positions: Least number of voxels of the smallest feature map: a norm cannot normalise
            a single one.
    """

    multiples: tuple[int, ...]
    min_positions: int

    def num_positions(self, patch_size: Sequence[int]) -> int:
        """Voxels of the smallest feature map."""
        axes = zip(patch_size, self.multiples, strict=True)
        return math.prod(size // multiple for size, multiple in axes)


def check_patch_size(network: str, patch_size: Sequence[int], rule: PatchRule, plans: str) -> None:
    """Refuse a patch size, in voxels, that a network cannot take.

    Raises:
        InputError: It cannot; the message says which axis, what is valid, and what to change.
    """
    axes = enumerate(zip(patch_size, rule.multiples, strict=True))
    wrong = [str(axis) for axis, (size, multiple) in axes if size % multiple]
    if wrong:
        why = f"axis {' and '.join(wrong)}: sizes must be multiples of {list(rule.multiples)}"
    elif rule.num_positions(patch_size) < rule.min_positions:
        why = (
            f"it shrinks the patch by {list(rule.multiples)} to a single voxel, "
            "which cannot be normalised"
        )
    else:
        return
    near = " or ".join(str(list(size)) for size in find_nearest_patch_sizes(patch_size, rule))
    message = (
        f"{network} cannot take the patch size {list(patch_size)} of the plans {plans} ({why}). "
        f"The nearest that it can take: {near}. In the data set's folder in nnUNet_preprocessed, "
        f'copy {plans}.json to a new name, say {network}.json, set "plans_name" to {network} and '
        f'"patch_size" of the configuration to that size in it, and train with -p {network}. '
        "Nothing has to be preprocessed again."
    )
    raise InputError(message)


def find_nearest_patch_sizes(patch_size: Sequence[int], rule: PatchRule) -> list[tuple[int, ...]]:
    """Valid patch sizes next to one that is not valid: the smaller one, then the larger one."""
    axes = list(zip(patch_size, rule.multiples, strict=True))
    smaller = [max(multiple, size // multiple * multiple) for size, multiple in axes]
    larger = [math.ceil(size / multiple) * multiple for size, multiple in axes]
    for size in (smaller, larger):
        if rule.num_positions(size) < rule.min_positions:
            size[-1] *= rule.min_positions  # one axis is enough
    return list(dict.fromkeys((tuple(smaller), tuple(larger))))


class PlannedUNet(NamedTuple):
    """What plans say of the U-Net that nnU-Net would train; the lists have one entry a stage."""

    patch_size: list[int]  # voxels of each axis
    features: list[int]  # channels
    kernel_sizes: list[Any]
    strides: list[list[int]]  # with which the stage begins, one number an axis


class Sizes(NamedTuple):
    """How a network is made for plans."""

    arguments: dict[str, Any]  # of MONAI's class, besides dimensions and channels
    rule: PatchRule


def read_planned_unet(patch_size: Sequence[int], planned: Mapping[str, Any]) -> PlannedUNet:
    """Read the sizes of a U-Net in plans: the patch size and the `arch_kwargs` of a configuration.

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


class SingleOutputTrainer(nnUNetTrainerNoDeepSupervision):  # type: ignore[misc]  # nnU-Net has no types
    """nnU-Net's trainer for a network with a single output: logits at full resolution."""

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Leave the network as it is: it has no deep supervision."""


def network_builder(name: str, **arguments: Any) -> Callable[..., nn.Module]:
    """Make the `build_network_architecture` of a trainer.

    Args:
        name: One of `NETWORKS`.
        arguments: Of MONAI's class, in place of those from the plans or of MONAI's defaults; not
            those that change by how much the network shrinks a patch.

    Returns:
        A function with nnU-Net's parameters, to be made a `staticmethod`. It raises `InputError`
        if the plans do not fit the network, and `ImportError` if MONAI is missing.
    """

    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        patch_size = configuration_manager.patch_size
        planned = read_planned_unet(patch_size, configuration_manager.network_arch_init_kwargs)
        sizes = NETWORKS[name](planned)
        check_patch_size(name, patch_size, sizes.rule, plans_manager.plans_name)
        build = _build_vnet if name == "VNet" else _build
        return build(
            name,
            spatial_dims=len(patch_size),
            in_channels=num_input_channels,
            out_channels=num_output_channels,
            **{**sizes.arguments, **arguments},
        )

    return build_network_architecture


def _build(name: str, **arguments: Any) -> nn.Module:
    network_class = getattr(_import_networks(), name)
    if "img_size" not in inspect.signature(network_class).parameters:
        arguments.pop("img_size", None)
    network: nn.Module = network_class(**arguments)
    for module_name, module in network.named_modules():
        if "cross_attn" in module_name:  # UNETR never uses it, and DDP stops for want of gradients
            module.requires_grad_(requires_grad=False)
    return network


def _build_vnet(name: str, *, in_channels: int, **arguments: Any) -> nn.Module:
    """V-Net without its own dropout, for any number of channels up to 16.

    Raises:
        InputError: There are more.
    """
    divisors = [number for number in (1, 2, 4, 8, VNET_FEATURES) if number >= in_channels]
    if not divisors:
        message = (
            f"VNet takes at most {VNET_FEATURES} input channels, here are {in_channels} (in a "
            "cascade the classes of the stage before count). Train another network."
        )
        raise InputError(message)
    network = _build(name, in_channels=divisors[0], **arguments)
    for module in network.modules():
        # Not MONAI's 0.5, of which two cannot be set: in 2D they would drop whole samples.
        if isinstance(module, (nn.Dropout, nn.Dropout2d, nn.Dropout3d)):
            module.p = 0.0
    num_missing = divisors[0] - in_channels
    return nn.Sequential(ZeroChannels(num_missing), network) if num_missing else network


class ZeroChannels(nn.Module):
    """Appends so many channels of zeros to an image of shape `(B, C, *spatial)`."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, image: Tensor) -> Tensor:
        """Return shape `(B, C + num_channels, *spatial)`."""
        no_axis = (0, 0) * (image.ndim - 2)
        return functional.pad(image, (*no_axis, 0, self.num_channels))


def _import_networks() -> Any:
    try:
        import einops  # noqa: F401  # MONAI's transformers ask for it only once they are built
        from monai.networks import nets
    except ImportError as error:
        message = (
            f"This trainer's network is MONAI's, which cannot be imported ({error}). "
            "Install it: pip install 'nnunetv2-mapo[monai]'"
        )
        raise ImportError(message) from error
    return nets
