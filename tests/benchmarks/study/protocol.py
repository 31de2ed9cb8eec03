"""What is fixed: data sets with their sizes and networks, and regimes of training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

FOLD = 0
VALIDATION_STEPS = 5  # an epoch, for nnU-Net's pseudo Dice


@dataclass(frozen=True)
class Dataset:
    """A data set as the study uses it.

    Attributes:
        folder: Name of its raw data set.
        num_training: Cases that are trained on.
        num_validation: Cases that are evaluated; the others are not used.
        configuration: nnU-Net's.
        patch_size: Of the plans.
        batch_size: Of the plans.
        features: Of each stage of the U-Net.
        image_size: Length of the sides that 2D images are resized to; None leaves them.
        spacing_mm: That 3D images are resampled to; None for 2D images, which have none.
        group_size: Cases in a row that stay in one part of the split, such as one eye's.
        tolerance: Of NSD, one voxel: in mm, or pixels of 2D images.
        num_unlabelled: Of the other cases, those whose images are used without their labels.
    """

    folder: str
    num_training: int
    num_validation: int
    configuration: str = "2d"
    patch_size: tuple[int, ...] = (64, 64)
    batch_size: int = 6
    features: tuple[int, ...] = (8, 16, 32, 64)
    image_size: int | None = 64
    spacing_mm: float | None = None
    group_size: int = 1
    tolerance: float = 1.0
    num_unlabelled: int = 0


DATASETS = {
    "Kvasir": Dataset("Dataset101_KvasirSEG", 100, 50),
    "Hippocampus": Dataset(
        "Dataset004_Hippocampus",
        50,
        50,
        "3d_fullres",
        (20, 28, 20),
        2,
        (8, 16, 32),
        None,
        1.6,
        tolerance=1.6,
    ),
    "PolypGen": Dataset("Dataset105_PolypGen", 120, 100),
    "Nuclei": Dataset("Dataset103_Nuclei", 100, 100, image_size=None),  # 128 x 128
    "Vessels": Dataset("Dataset104_Vessels", 48, 32, image_size=128, group_size=4),
    "EBHI": Dataset("Dataset102_EBHI", 100, 100),
    # few outlines and many images
    "EBHI20": Dataset("Dataset102_EBHI", 20, 100, num_unlabelled=150),
    "Nuclei20": Dataset("Dataset103_Nuclei", 20, 100, image_size=64, num_unlabelled=150),
    "PolypGen60": Dataset("Dataset105_PolypGen", 60, 100, num_unlabelled=150),
}
ALL_LABELLED = tuple(name for name, dataset in DATASETS.items() if not dataset.num_unlabelled)
FEW_LABELLED = tuple(name for name in DATASETS if name not in ALL_LABELLED)


@dataclass(frozen=True)
class Regime:
    """How long is trained, and from where.

    Attributes:
        num_epochs: Of the base trainer.
        num_steps: An epoch.
        variant: Shipped variant of MAPO that the arms change: plain, `"_FineTune"`, `"_Choices"`.
        starts_from: Regime whose finished stock model of the same data set and seed it starts from.
    """

    num_epochs: int
    num_steps: int
    variant: str = ""
    starts_from: str | None = None


REGIMES = {
    "short": Regime(25, 100),
    "finetune": Regime(25, 100, "_FineTune", "short"),
    "choices": Regime(125, 100, "_Choices", "short"),  # of which it trains a fifth
    "long": Regime(100, 100),
}


def fingerprint(dataset: Dataset, regime: Regime | None = None) -> str:
    """Eight digits that change with the protocol of a data set, or of its trainings."""
    described = asdict(dataset)
    if not dataset.num_unlabelled:  # there was no such field in the first protocols
        del described["num_unlabelled"]
    content = [described, regime and asdict(regime)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
