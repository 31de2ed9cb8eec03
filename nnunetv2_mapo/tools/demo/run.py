"""The steps of the demo: data, plan, training, prediction, evaluation, pictures."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2_mapo.method.store import read_rounds
from nnunetv2_mapo.tools.demo import results
from nnunetv2_mapo.tools.demo.folder import DATASET, DATASET_ID, TRAINER, DemoFolder
from nnunetv2_mapo.tools.demo.phantom import write_dataset
from nnunetv2_mapo.tools.nnunet import NNUNet

TRAINERS = '''"""Trainers of `nnUNetv2_mapo demo`; nnU-Net finds them through nnUNet_extTrainer."""

import random

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO


class nnUNetTrainerDemo(nnUNetTrainer):
    """nnU-Net's trainer, made short and reproducible."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = {num_epochs}
        self.num_iterations_per_epoch = {num_iterations}
        self.num_val_iterations_per_epoch = 4
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        torch.set_num_threads(1)  # more threads cost a network this small more than they gain

    def configure_optimizers(self):
        # Adam needs fewer steps than nnU-Net's SGD; the schedule is nnU-Net's.
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.003)
        return optimizer, PolyLRScheduler(optimizer, 0.003, self.num_epochs)


class nnUNetTrainer_MAPO_TwoRounds(nnUNetTrainer_MAPO):
    """A variant of MAPO is a class with other settings."""

    mapo = MAPOConfig(
        num_rounds=2,
        rates_2d=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
        rates_3d=(0.0, 0.05, 0.1, 0.15, 0.2),
    )


# nnUNetTrainerDemo_MAPO_TwoRounds exists by its name alone: the first trainer with MAPO and the
# settings of the second.
'''


@dataclass(frozen=True)
class Size:
    """How large the demo is.

    Attributes:
        shape: Voxels of a phantom, and of a patch.
        file_ending: Of images and segmentations.
        num_training: Training cases, which are mined.
        num_validation: Validation cases of fold 0.
        num_test: Cases that training never sees.
        features: Features of each stage of the U-Net.
        batch_size: Patches of a training step.
        num_epochs: A third (2D) or 5/13 (3D) of them is the warm-up.
        num_iterations: Training steps of an epoch.
    """

    shape: tuple[int, ...]
    file_ending: str
    num_training: int
    num_validation: int
    num_test: int
    features: tuple[int, ...]
    batch_size: int
    num_epochs: int
    num_iterations: int


SIZES = {
    "2d": Size((64, 64), ".png", 40, 4, 12, (8, 16, 32, 64), 8, 9, 60),
    "3d_fullres": Size((28, 28, 28), ".nii.gz", 32, 4, 8, (8, 16, 32), 2, 9, 70),
}


@dataclass(frozen=True)
class DemoRun:
    """A run of the demo.

    Attributes:
        folder: Where everything goes, prepared.
        nnunet: nnU-Net's commands for this folder.
    """

    folder: DemoFolder
    nnunet: NNUNet

    @property
    def size(self) -> Size:
        """How large it is."""
        return SIZES[self.folder.configuration]

    def run(self) -> results.Results:
        """Run every step."""
        self.write_data()
        self.plan()
        self.train()
        mined = read_rounds(self.folder.fold)[0]
        shown = results.find_largest_gaps(mined.cases, num_cases=4)
        self.predict(shown)
        summaries = {stage: self.evaluate(stage) for stage in results.STAGES}
        self.draw_pictures(shown)
        return results.read_results(self.folder.fold, summaries)

    def write_data(self) -> None:
        """Write the phantom and the demo's trainers."""
        size = self.size
        print(f"Phantom of {'x'.join(map(str, size.shape))} voxels: {size.num_training} training, "
              f"{size.num_validation} validation, {size.num_test} test cases")  # fmt: skip
        num_known = size.num_training + size.num_validation
        write_dataset(self.folder.raw, size.shape, size.file_ending, num_known, size.num_test)
        self.folder.trainers.write_text(
            TRAINERS.format(num_epochs=size.num_epochs, num_iterations=size.num_iterations)
        )

    def plan(self) -> None:
        """Plan and preprocess; then make the plan small and the split a single fold."""
        configuration = self.folder.configuration
        self.nnunet.run("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", configuration,
                        "-np", "1", "-npfp", "1", "--no_pbar")  # fmt: skip
        plans = self.folder.preprocessed / "nnUNetPlans.json"
        content = json.loads(plans.read_text())
        shrink_plan(content["configurations"][configuration], self.size)
        plans.write_text(json.dumps(content, indent=1))
        cases = sorted(path.name for path in (self.folder.raw / "labelsTr").iterdir())
        cases = [case.removesuffix(self.size.file_ending) for case in cases]
        num_training = self.size.num_training
        split = [{"train": cases[:num_training], "val": cases[num_training:]}]
        (self.folder.preprocessed / "splits_final.json").write_text(json.dumps(split))

    def train(self) -> None:
        """Train fold 0, with augmentation in the same process: reproducible."""
        self.nnunet.run("nnUNetv2_train", DATASET, self.folder.configuration, "0", "-tr", TRAINER,
                        "-device", find_device(), nnUNet_n_proc_DA="0")  # fmt: skip

    def predict(self, shown: list[str]) -> None:
        """Predict the test cases with the reference's and the final weights.

        Args:
            shown: Training cases that the final weights predict too, for a picture.
        """
        write_reference_checkpoint(self.folder.fold)
        tests, images = self.folder.raw / "imagesTs", self.folder.predictions / "images"
        self._predict(tests, "warmup", "checkpoint_reference.pth")
        shutil.copytree(tests, images)
        for case in shown:
            name = f"{case}_0000{self.size.file_ending}"
            shutil.copy(self.folder.raw / "imagesTr" / name, images)
        self._predict(images, "final", "checkpoint_final.pth")
        training_cases = self.folder.predictions / "training_cases"
        training_cases.mkdir()
        for case in shown:
            name = f"{case}{self.size.file_ending}"
            (self.folder.predictions / "final" / name).rename(training_cases / name)

    def _predict(self, images: Path, stage: str, checkpoint: str) -> None:
        self.nnunet.run(
            "nnUNetv2_predict",
            *("-i", str(images), "-o", str(self.folder.predictions / stage), "-d", DATASET),
            *("-c", self.folder.configuration, "-tr", TRAINER, "-f", "0", "-chk", checkpoint),
            # No mirroring and no worker processes: both take longer than they are worth here.
            *("-device", find_device(), "--disable_tta", "-npp", "0", "-nps", "0"),
        )

    def evaluate(self, stage: str) -> Path:
        """Evaluate the predictions of a stage; gives nnU-Net's `summary.json`."""
        predictions = self.folder.predictions / stage
        self.nnunet.run(
            "nnUNetv2_evaluate_folder",
            *(str(self.folder.raw / "labelsTs"), str(predictions), "-np", "1"),
            *("-djfile", str(self.folder.model / "dataset.json")),
            *("-pfile", str(self.folder.model / "plans.json")),
        )
        return predictions / "summary.json"

    def draw_pictures(self, shown: list[str]) -> None:
        """Draw `pairs.png` with these training cases, and `test_cases.png`."""
        folder, ending = self.folder, self.size.file_ending
        training_cases = folder.predictions / "training_cases"
        pairs = [
            results.pair_panels(folder.raw, folder.fold, training_cases, case, ending)
            for case in shown
        ]
        tests = [
            results.test_panels(folder.raw, folder.predictions, f"test_{number:03d}", ending)
            for number in range(4)
        ]
        if pairs:
            results.draw(folder.pictures / "pairs.png", results.PAIR_COLUMNS, pairs)
        results.draw(folder.pictures / "test_cases.png", results.TEST_COLUMNS, tests)


def find_device() -> str:
    """`"cuda"` if PyTorch sees a GPU, else `"cpu"`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def shrink_plan(plan: dict[str, Any], size: Size) -> None:
    """Make nnU-Net's plan of a configuration small enough for a CPU, in place."""
    num_stages, num_dimensions = len(size.features), len(size.shape)
    plan["patch_size"], plan["batch_size"] = list(size.shape), size.batch_size
    plan["architecture"]["arch_kwargs"].update(
        n_stages=num_stages,
        features_per_stage=list(size.features),
        kernel_sizes=[[3] * num_dimensions] * num_stages,
        strides=[[1] * num_dimensions] + [[2] * num_dimensions] * (num_stages - 1),
        n_conv_per_stage=[2] * num_stages,
        n_conv_per_stage_decoder=[1] * (num_stages - 1),
    )


def write_reference_checkpoint(fold: Path) -> None:
    """Make a checkpoint for nnU-Net's prediction from the reference: the weights after warm-up."""
    # weights_only=False: nnU-Net's checkpoint, made a moment ago, holds more than tensors.
    checkpoint = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    checkpoint["network_weights"] = torch.load(fold / "reference.pth", weights_only=True)
    torch.save(checkpoint, fold / "checkpoint_reference.pth")
