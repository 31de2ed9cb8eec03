"""UNETR without its 86 million weights."""

from nnunetv2_mapo.zoo.networks import SingleOutputTrainer, network_builder


class nnUNetTrainerSmallUNETR(SingleOutputTrainer):
    """Two attention heads of 12 features."""

    build_network_architecture = staticmethod(
        network_builder("UNETR", hidden_size=24, mlp_dim=24, num_heads=2)
    )
