"""MAPO as arXiv:2512.15009 prints it."""

from nnunetv2_mapo.method.config import RATES_3D, MAPOConfig
from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO


class nnUNetTrainer_MAPO_Paper(nnUNetTrainer_MAPO):
    """The paper's loss, thresholds, lengths and optimisers."""

    mapo = MAPOConfig(
        rates="fixed",
        rates_3d=RATES_3D,
        tile_step_size=1.0,
        pair="case",
        agree=False,
        tau=0.3,
        beta=0.1,
        lambda_supervised=0.5,
        likelihood="image",
        reference="network",
        warmup_dropout=True,
        preference_dropout="off",
        num_epochs_2d=300,
        num_epochs_3d=1300,
        adam_learning_rate=1e-4,
    )
