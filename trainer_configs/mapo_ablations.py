"""MAPO with one choice of the method changed in each."""

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO


class nnUNetTrainer_MAPO_Threshold(nnUNetTrainer_MAPO):
    """Candidates from thresholds on the foreground probability."""

    mapo = MAPOConfig(sampler="threshold")


class nnUNetTrainer_MAPO_Noise(nnUNetTrainer_MAPO):
    """Candidates from Gaussian noise on the image."""

    mapo = MAPOConfig(sampler="noise")


class nnUNetTrainer_MAPO_Window(nnUNetTrainer_MAPO):
    """Each sliding window has a preference pair of its own."""

    mapo = MAPOConfig(selection_unit_2d="window", selection_unit_3d="window", tile_step_size=1.0)


class nnUNetTrainer_MAPO_Quantile(nnUNetTrainer_MAPO):
    """The half of the samples with the largest Dice gaps has a pair."""

    mapo = MAPOConfig(pair="case", tau_quantile=0.5)


class nnUNetTrainer_MAPO_IPO(nnUNetTrainer_MAPO):
    """IPO: the margin has a finite aim."""

    mapo = MAPOConfig(loss_type="ipo")


class nnUNetTrainer_MAPO_Hinge(nnUNetTrainer_MAPO):
    """Hinge loss: pairs with a large margin pull no more."""

    mapo = MAPOConfig(loss_type="hinge")


class nnUNetTrainer_MAPO_Robust(nnUNetTrainer_MAPO):
    """DPO that expects a tenth of the pairs to be the wrong way round."""

    mapo = MAPOConfig(loss_type="robust", label_smoothing=0.1)


class nnUNetTrainer_MAPO_RoundReference(nnUNetTrainer_MAPO):
    """The policy that mines a round is its reference."""

    mapo = MAPOConfig(reference_update="round")


class nnUNetTrainer_MAPO_AverageReference(nnUNetTrainer_MAPO):
    """The reference is the policy's moving average."""

    mapo = MAPOConfig(reference="network", reference_update="average")
