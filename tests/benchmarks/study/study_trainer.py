"""The base trainer of every arm: nnU-Net's, short, with cheap augmentation and a seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .losses import add_loss
from .validation import CaseMetrics, evaluate_validation_cases


class InMemoryDataset(nnUNetDatasetBlosc2):
    """nnU-Net's dataset that reads each case once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cases: dict[str, Any] = {}

    def load_case(self, identifier: str) -> Any:
        """As nnU-Net's, with arrays in memory."""
        if identifier not in self._cases:
            data, segmentation, previous, properties = super().load_case(identifier)
            self._cases[identifier] = data[:], segmentation[:], previous, properties
        return self._cases[identifier]


class StudyTrainer(nnUNetTrainer):
    """nnU-Net's trainer for one cell of the study.

    Attributes:
        seed: Of weights, batches, augmentation and dropout.
        epochs: Length.
        steps: An epoch.
        validation_steps: An epoch.
        learning_rate: At the start.
        tolerance: Of NSD, in mm or pixels.
        weights: Checkpoint to start from; None for random weights.
        more_loss: Of `losses.LOSSES`, on top of nnU-Net's; empty for none.
        cases: Metrics of the validation cases, once they are evaluated.
    """

    seed = 0
    epochs = 25
    steps = 100
    validation_steps = 5
    learning_rate = 1e-2
    tolerance = 1.0
    weights: Path | None = None
    more_loss = ""
    cases: CaseMetrics | None = None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's own signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.epochs
        self.num_iterations_per_epoch = self.steps
        self.num_val_iterations_per_epoch = self.validation_steps
        self.initial_lr = self.learning_rate
        self.logger.plot_progress_png = lambda _folder: None  # half a second an epoch

    def initialize(self) -> None:
        """Seed everything, then build as nnU-Net does."""
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002  # nnU-Net draws from this generator
        torch.manual_seed(self.seed)
        super().initialize()
        if self.weights is not None:
            content = torch.load(self.weights, map_location=self.device, weights_only=False)
            self.network.load_state_dict(content["network_weights"])
        self.dataset_class = InMemoryDataset

    def _build_loss(self) -> Any:
        stock = super()._build_loss()
        return add_loss(stock, self.more_loss, self.label_manager) if self.more_loss else stock

    def plot_network_architecture(self) -> None:
        """Draw nothing."""

    @staticmethod
    def get_training_transforms(
        patch_size: Any,
        rotation_for_DA: RandomScalar,  # noqa: N803  # nnU-Net's own name
        deep_supervision_scales: Any,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        **_: Any,
    ) -> BasicTransform:
        """The cheap ones of nnU-Net's transforms, with its own strengths."""
        assert not do_dummy_2d_data_aug, "the study's patches are nearly isotropic"
        contrast = BGContrast((0.75, 1.25))
        noise = GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True)
        brightness = MultiplicativeBrightnessTransform(contrast, False, p_per_channel=1)
        steps = [
            SpatialTransform(
                patch_size,
                patch_center_dist_from_border=0,
                random_crop=False,
                p_rotation=0.2,
                rotation=rotation_for_DA,
                p_scaling=0.2,
                scaling=(0.7, 1.4),
                p_synchronize_scaling_across_axes=1,
                border_mode_seg="constant",
                padding_value_seg=-1,
            ),
            RandomTransform(noise, apply_probability=0.1),
            RandomTransform(brightness, apply_probability=0.15),
            RandomTransform(
                ContrastTransform(contrast, True, False, p_per_channel=1), apply_probability=0.15
            ),
            MirrorTransform(mirror_axes),
            RemoveLabelTansform(-1, 0),
            DownsampleSegForDSTransform(deep_supervision_scales),
        ]
        return ComposeTransforms(steps)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Evaluate every validation case here, without files."""
        self.set_deep_supervision_enabled(False)
        _, names = self.do_split()
        dataset = InMemoryDataset(self.preprocessed_dataset_folder, names)
        self.cases = evaluate_validation_cases(self, dataset)
        self.set_deep_supervision_enabled(True)
