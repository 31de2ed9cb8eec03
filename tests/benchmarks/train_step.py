"""Training step: MAPO's against the stock trainer's on the same network, batch and data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from alternate import Row, parse_repeats, print_table, time_ratios
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_dataset import Shape, TinyDataset, perturb, quiet, tiny_dataset

from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO
from nnunetv2_mapo.method.store import WEIGHT_ONE

SHAPES = {
    "2D": Shape(case=(1, 96, 96), patch=(64, 64), batch_size=4, num_stages=5),
    "3D": Shape(case=(32, 32, 32), patch=(32, 32, 32), batch_size=2, num_stages=4),
}
DISAGREEMENT = 0.05  # share of the voxels
BAR_EVERY_PATCH, BAR_NO_PATCH = 1.08, 1.05


class AsShipped(nnUNetTrainer_MAPO):
    mapo = MAPOConfig(warmup_epochs=1)


class WithNetwork(nnUNetTrainer_MAPO):
    mapo = MAPOConfig(warmup_epochs=1, reference="network")


class WithDropout(nnUNetTrainer_MAPO):
    mapo = MAPOConfig(warmup_epochs=1, warmup_dropout=True, preference_dropout="without pair")


TRAINERS = {
    "as shipped": AsShipped, "reference network": WithNetwork, "dropout": WithDropout,
}  # fmt: skip


def main() -> None:
    repeats = parse_repeats(__doc__, default=9)
    print_table(_rows(repeats))


def _rows(repeats: int) -> Iterator[Row]:
    for name, shape in SHAPES.items():
        with tiny_dataset(shape) as dataset:
            yield from _compare(name, dataset, repeats)


def _compare(name: str, dataset: TinyDataset, repeats: int) -> Iterator[Row]:
    stock = dataset.make_trainer(nnUNetTrainer)
    with quiet():
        stock.on_train_start()
    stock.network.train()
    for label, trainer_class in TRAINERS.items():
        trainer = dataset.make_trainer(trainer_class)
        trainer.network.load_state_dict(stock.network.state_dict())
        _enter(trainer, epoch=0)
        batch = next(trainer.dataloader_train)
        ratios = _ratios(trainer, stock, batch, batch, repeats)
        yield Row(f"{name}, warm-up, {label}", ratios)
        _enter(trainer, epoch=1)
        for share, patches, bar in (
            (DISAGREEMENT, "every patch has a pair", BAR_EVERY_PATCH),
            (0.0, "no patch has a pair", BAR_NO_PATCH),
        ):
            with_pairs = _add_pairs(batch, share, trainer.mapo)
            ratios = _ratios(trainer, stock, with_pairs, batch, repeats)
            bar = bar if trainer_class is AsShipped else None
            yield Row(f"{name}, preferences, {label}, {patches}", ratios, bar)


def _enter(trainer: Any, epoch: int) -> None:
    """Bring a trainer to the start of an epoch as its `run_training` does."""
    trainer.current_epoch = epoch
    with quiet():
        if epoch == 0:
            trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()


def _ratios(
    trainer: Any, stock: Any, batch: dict[str, Any], stock_batch: dict[str, Any], repeats: int
) -> Any:
    return time_ratios(
        lambda: trainer.train_step(copy.copy(batch)),
        lambda: stock.train_step(copy.copy(stock_batch)),
        repeats,
    )


def _add_pairs(batch: dict[str, Any], share: float, config: MAPOConfig) -> dict[str, Any]:
    """Batch of the warm-up as the preference stage has it, disagreement in every patch or none."""
    chosen = batch["target"][0][:, 0].numpy().astype(np.int16)
    random = np.random.default_rng(0)
    rejected = chosen
    if share:
        rejected = np.stack([perturb(label_map, share, random) for label_map in chosen])
    others = (np.full_like(chosen, WEIGHT_ONE), np.zeros_like(chosen))  # weight, margin
    channels = np.stack((chosen, rejected, *others)[: config.num_channels], axis=1)
    return {**batch, "target": [*batch["target"], torch.from_numpy(channels.astype(np.int16))]}


if __name__ == "__main__":
    main()
