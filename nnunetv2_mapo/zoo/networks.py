"""Networks of MONAI for nnU-Net trainers: sizes from the plans, the rest MONAI's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (  # noqa: E501  # nnU-Net's names
    nnUNetTrainerNoDeepSupervision,
)
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.zoo.sizes import NETWORKS, check_patch_size, read_planned_unet

VNET_FEATURES = 16  # of its first block, which adds the input channels, repeated to as many


class MonaiTrainer(nnUNetTrainerNoDeepSupervision):  # type: ignore[misc]  # nnU-Net has no types
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
