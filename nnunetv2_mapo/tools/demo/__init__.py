"""The demo: its folder, and its steps (data, plan, training and control, verdict, report)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from nnunetv2_mapo.method.store import read_rounds
from nnunetv2_mapo.method.summary import summarize_stored
from nnunetv2_mapo.support.device import choose_device
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.compare import read_methods
from nnunetv2_mapo.tools.compare.tables import compare_methods, format_comparison
from nnunetv2_mapo.tools.demo.phantom import ENDING, write_dataset
from nnunetv2_mapo.tools.nnunet import NNUNet
from nnunetv2_mapo.tools.report import run_report

DATASET = "Dataset900_MAPOPhantom"
CONTROL = "nnUNetTrainerDemo"
TRAINER = f"{CONTROL}_MAPO_TwoRounds"
NUM_TRAINING, NUM_VALIDATION = 32, 24  # cases
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
        self.control = self.models / f"{CONTROL}__nnUNetPlans__{configuration}"
        self.fold = self.model / "fold_0"
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
        for folder in (self.logs, self.trainers.parent):
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
        models = [path for name in (TRAINER, CONTROL) for path in self.models.glob(f"{name}__*")]
        made = [self.raw, self.preprocessed, *models, self.logs, self.trainers]
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
            print(f"  export {name}={shlex.quote(str(value))}")
        self._write_data()
        self._plan()
        for trainer in (TRAINER, CONTROL):
            # Augmentation in the same process: reproducible.
            self.nnunet.run("nnUNetv2_train", DATASET, self.configuration, "0", "-tr", trainer,
                            "-device", choose_device(None).type, nnUNet_n_proc_DA="0")  # fmt: skip
        comparison = compare_methods(read_methods([self.control, self.model]))
        summaries = [asdict(summarize_stored(mined)) for mined in read_rounds(self.fold)]
        answer = comparison.answer.rows[0]._asdict()
        found = {"answer": answer, "rounds": summaries}
        self._write_record({"configuration": self.configuration, **found})
        with patch.dict(os.environ, self.nnunet.paths):
            run_report(Namespace(model=self.model, output=None, compare=[self.control], folds=None))
        print(f"\n{format_comparison(comparison, with_details=False)}\n\nWhere everything is:")
        for path, meaning in {
            self.model / "report.html": "the report: open it in a browser",
            self.fold: "checkpoints, preferences, progress_mapo.png",
            self.trainers: "how a trainer and a variant of MAPO are written",
            self.logs: "full output of every command",
        }.items():
            print(f"  {path}\n    {meaning}")
        print(f"Finished in {(time.monotonic() - started) / 60:.1f} minutes.")

    def _write_data(self) -> None:
        """Write the phantom and the demo's trainers."""
        shape = self.size.shape
        print(f"\nPhantom of {'x'.join(map(str, shape))} voxels: {NUM_TRAINING} training, "
              f"{NUM_VALIDATION} validation cases")  # fmt: skip
        write_dataset(self.raw, shape, NUM_TRAINING + NUM_VALIDATION, 0)
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
