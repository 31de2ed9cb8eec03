"""A third party's network, in a module that needs nothing of this package."""

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn


class nnUNetTrainerOwnNetwork(nnUNetTrainer):
    """The plans' network with another slope: the same weights fit, but compute something else."""

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        network = nnUNetTrainer.build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        for module in network.modules():
            if isinstance(module, nn.LeakyReLU):
                module.negative_slope = 0.5
        return network
