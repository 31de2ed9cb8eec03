"""Data loader: nnU-Net's loader and training transforms with preference channels and without."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from alternate import Ratios, Row, parse_repeats, print_table, time_ratios
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_dataset import Shape, perturb, quiet, tiny_dataset

from nnunetv2_mapo import MAPOConfig
from nnunetv2_mapo.method.dataset import carry_preferences, with_preferences
from nnunetv2_mapo.method.store import MARGIN_ONE, WEIGHT_ONE, Round, stack_preferences

SHAPES = {
    "2D": Shape(case=(2, 384, 384), patch=(320, 320), batch_size=4, num_stages=7),
    "3D": Shape(case=(64, 80, 80), patch=(48, 64, 64), batch_size=2, num_stages=5),
}
NUM_BATCHES = 8  # in each timing
DISAGREEMENT = 0.05  # share of the voxels of the cases with a pair
BAR = 0.9


def main() -> None:
    print_table(_rows(parse_repeats(__doc__, default=7)))


def _rows(repeats: int) -> Iterator[Row]:
    for name, shape in SHAPES.items():
        with tiny_dataset(shape) as dataset, TemporaryDirectory() as folder:
            trainer = dataset.make_trainer(nnUNetTrainer)
            with quiet():
                stock = trainer.get_dataloaders()[0].data_loader
            mined = _mine_by_hand(stock._data, Path(folder), shape)
            carrying = copy.copy(stock)
            carrying._data = with_preferences(stock._data, mined)
            carrying.transforms = carry_preferences(stock.transforms, MAPOConfig().num_channels)
            time = time_ratios(_draw(carrying).__next__, _draw(stock).__next__, repeats)
            throughput = Ratios(1 / time.median, 1 / time.high, 1 / time.low)
            yield Row(f"{name}, throughput", throughput, BAR, at_least=True)


def _mine_by_hand(cases: Any, folder: Path, shape: Shape) -> Round:
    """A round in which every other case has a pair."""
    mined, random = Round(folder, origin={}), np.random.default_rng(0)
    for number, identifier in enumerate(cases.identifiers):
        segmentation = cases.load_case(identifier)[1][:]
        chosen = rejected = np.zeros_like(segmentation[0])  # without a pair
        if number % 2:
            chosen = segmentation[0]
            rejected = perturb(chosen, DISAGREEMENT, random)
        differs = chosen != rejected
        margins = random.integers(-MARGIN_ONE, MARGIN_ONE, chosen.shape) * differs
        stack = stack_preferences(segmentation, chosen, rejected, WEIGHT_ONE * differs, margins)
        mined.write_case(identifier, stack, [], shape.patch)
    return mined


def _draw(loader: Any) -> Iterator[None]:
    """Draw batches with every step; seeded: two loaders draw the same patches and augmentations."""
    for seed in count():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # nnU-Net draws from the global generator
        for _ in range(NUM_BATCHES):
            loader.generate_train_batch()
        yield


if __name__ == "__main__":
    main()
