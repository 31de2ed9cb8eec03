"""Networks of MONAI, sized by nnU-Net's plans; `_MAPO` behind a name trains it with MAPO."""

from nnunetv2_mapo.zoo.networks import SingleOutputTrainer, network_builder


class nnUNetTrainer_VNet(SingleOutputTrainer):
    """V-Net (arXiv:1606.04797)."""

    build_network_architecture = staticmethod(network_builder("VNet"))


class nnUNetTrainer_DynUNet(SingleOutputTrainer):
    """MONAI's own nnU-Net (arXiv:1904.08128)."""

    build_network_architecture = staticmethod(network_builder("DynUNet"))


class nnUNetTrainer_UNETR(SingleOutputTrainer):
    """UNETR (arXiv:2103.10504)."""

    build_network_architecture = staticmethod(network_builder("UNETR"))


class nnUNetTrainer_SwinUNETR(SingleOutputTrainer):
    """Swin UNETR (arXiv:2201.01266)."""

    build_network_architecture = staticmethod(network_builder("SwinUNETR"))


class nnUNetTrainer_SegResNet(SingleOutputTrainer):
    """SegResNet (arXiv:1810.11654)."""

    build_network_architecture = staticmethod(network_builder("SegResNet"))


class nnUNetTrainer_AttentionUnet(SingleOutputTrainer):
    """Attention U-Net (arXiv:1804.03999)."""

    build_network_architecture = staticmethod(network_builder("AttentionUnet"))
