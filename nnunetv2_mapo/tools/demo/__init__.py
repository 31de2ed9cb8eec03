"""The demo: its folder, and its steps (data, plan, training, prediction, evaluation, pictures)."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nnunetv2_mapo.method.rounds import summarize_stored
from nnunetv2_mapo.method.store import read_rounds
from nnunetv2_mapo.support.device import choose_device
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.demo.phantom import ENDING, LABELS, write_dataset
from nnunetv2_mapo.tools.demo.results import draw_pairs, find_largest_gaps, format_results
from nnunetv2_mapo.tools.nnunet import NNUNet

DATASET = "Dataset900_MAPOPhantom"
TRAINER = "nnUNetTrainerDemo_MAPO_TwoRounds"
NUM_TRAINING, NUM_VALIDATION, NUM_TEST = 32, 4, 8  # cases
_MADE_BY = "nnUNetv2_mapo demo"

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
        self.num_epochs = 9  # about a third of them is the warm-up
        self.num_iterations_per_epoch = 70
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


class Size(NamedTuple):
    """What a configuration can afford on a CPU."""

    shape: tuple[int, ...]  # voxels of a phantom, and of a patch
    features: tuple[int, ...]  # of each stage of the U-Net
    batch_size: int


SIZES = {
    "2d": Size((64, 64), (8, 16, 32, 64), 8),
    "3d_fullres": Size((28, 28, 28), (8, 16, 32), 2),
}


class Demo:
    """The demo in a folder.

    Args:
        root: The folder, absolute.
        configuration: One of `SIZES`.
    """

    def __init__(self, root: Path, configuration: str) -> None:
        self.root, self.configuration = root, configuration
        self.size = SIZES[configuration]
        self.raw = root / "nnUNet_raw" / DATASET
        self.preprocessed = root / "nnUNet_preprocessed" / DATASET
        self.models = root / "nnUNet_results" / DATASET
        self.model = self.models / f"{TRAINER}__nnUNetPlans__{configuration}"
        self.fold = self.model / "fold_0"
        self.predictions, self.pictures = root / "predictions", root / "pictures"
        self.logs = root / "logs"
        self.trainers = root / "trainers" / "demo_trainers.py"
        self.record = root / "demo.json"  # marks the folder as a demo's, and holds the results
        self.nnunet = NNUNet(root)

    def prepare(self, *, overwrite: bool) -> None:
        """Make the folders; `root` must be empty or, with `overwrite`, a demo's.

        Raises:
            CommandError: It is not.
        """
        if self.root.is_dir() and any(self.root.iterdir()):
            self._clear(overwrite=overwrite)
        for folder in (self.logs, self.pictures, self.predictions, self.trainers.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self._write_record({})

    def _write_record(self, content: dict[str, Any]) -> None:
        self.record.write_text(json.dumps({"made_by": _MADE_BY, **content}, indent=1))

    def _clear(self, *, overwrite: bool) -> None:
        """Delete what demos made, nothing else."""
        is_demo = self.record.is_file() and _MADE_BY in self.record.read_text("utf-8", "replace")
        if not (is_demo and overwrite):
            way = "Delete that demo with --overwrite, or name" if is_demo else "Name"
            what = "holds an earlier demo" if is_demo else "is not empty"
            message = f"{self.root} {what}. {way} another folder with -o."
            raise CommandError(message)
        made = [self.raw, self.preprocessed, *self.models.glob(f"{TRAINER}__*"), self.predictions,
                self.pictures, self.logs, self.trainers]  # fmt: skip
        for path in made:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def run(self) -> None:
        """Run every step in the prepared folder, and print what it found and where it is."""
        started = time.monotonic()
        print(f"Everything goes to {self.root}. Environment of nnU-Net's commands:")
        for name, value in self.nnunet.paths.items():
            print(f"  export {name}={value}")
        self._write_data()
        self._plan()
        # Augmentation in the same process: reproducible.
        self.nnunet.run("nnUNetv2_train", DATASET, self.configuration, "0", "-tr", TRAINER,
                        "-device", choose_device(None).type, nnUNet_n_proc_DA="0")  # fmt: skip
        dice = self._predict()
        rounds = [summarize_stored(mined) for mined in read_rounds(self.fold)]
        found = {"dice": dice, "rounds": [asdict(summary) for summary in rounds]}
        self._write_record({"configuration": self.configuration, **found})
        print(f"\n{format_results(dice, rounds)}\n\nWhere everything is:")
        for path, meaning in {
            self.pictures: "pairs of training cases",
            self.fold: "checkpoints, preferences, progress_mapo.png",
            self.predictions: "segmentations of the test cases, after the warm-up and final",
            self.trainers: "how a trainer and a variant of MAPO are written",
            self.logs: "full output of every command",
        }.items():
            print(f"  {path}\n    {meaning}")
        print(f"Finished in {(time.monotonic() - started) / 60:.1f} minutes.")

    def _write_data(self) -> None:
        """Write the phantom and the demo's trainers."""
        shape = self.size.shape
        print(f"\nPhantom of {'x'.join(map(str, shape))} voxels: {NUM_TRAINING} training, "
              f"{NUM_VALIDATION} validation, {NUM_TEST} test cases")  # fmt: skip
        write_dataset(self.raw, shape, NUM_TRAINING + NUM_VALIDATION, NUM_TEST)
        self.trainers.write_text(TRAINERS)

    def _plan(self) -> None:
        """Plan and preprocess; then make the plan small and the split a single fold."""
        self.nnunet.run("nnUNetv2_plan_and_preprocess", "-d", "900", "-c", self.configuration,
                        "-np", "1", "-npfp", "1", "--no_pbar")  # fmt: skip
        plans = self.preprocessed / "nnUNetPlans.json"
        content = json.loads(plans.read_text())
        shrink_plan(content["configurations"][self.configuration], self.size)
        plans.write_text(json.dumps(content, indent=1))
        cases = sorted(path.name.removesuffix(ENDING) for path in self.raw.glob("labelsTr/*"))
        split = [{"train": cases[:NUM_TRAINING], "val": cases[NUM_TRAINING:]}]
        (self.preprocessed / "splits_final.json").write_text(json.dumps(split))

    def _predict(self) -> dict[str, dict[str, float]]:
        """Predict test cases with the reference and the final weights; Dice by stage and class."""
        write_reference_checkpoint(self.fold)
        images, training_cases = self.predictions / "images", self.predictions / "training_cases"
        shutil.copytree(self.raw / "imagesTs", images)
        training_cases.mkdir()
        shown = find_largest_gaps(read_rounds(self.fold)[0].cases, num_cases=4)
        for case in shown:  # for the picture
            shutil.copy(self.raw / "imagesTr" / f"{case}_0000{ENDING}", images)
        dice = {}
        for stage, checkpoint in (("after the warm-up", "reference"), ("final", "final")):
            predicted = self.predictions / checkpoint
            self.nnunet.run(
                "nnUNetv2_predict",
                *("-i", str(images), "-o", str(predicted), "-d", DATASET, "-tr", TRAINER),
                *("-c", self.configuration, "-f", "0", "-chk", f"checkpoint_{checkpoint}.pth"),
                # No mirroring and no worker processes: both take longer than they are worth here.
                *("-device", choose_device(None).type, "--disable_tta", "-npp", "0", "-nps", "0"),
            )
            for case in shown:
                (predicted / f"{case}{ENDING}").replace(training_cases / f"{case}{ENDING}")
            self.nnunet.run(
                "nnUNetv2_evaluate_folder",
                *(str(self.raw / "labelsTs"), str(predicted), "-np", "1"),
                *("-djfile", str(self.model / "dataset.json")),
                *("-pfile", str(self.model / "plans.json")),
            )
            content = json.loads((predicted / "summary.json").read_text())
            of_classes = {name: content["mean"][str(LABELS[name])] for name in ("organ", "lesion")}
            dice[stage] = {name: values["Dice"] for name, values in of_classes.items()}
            dice[stage]["mean"] = content["foreground_mean"]["Dice"]
        if shown:
            draw_pairs(self.pictures / "pairs.png", self.raw, self.fold, training_cases, shown)
        return dice


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
