"""Checkpoints of a network of about 200 MB: what is hashed and written, and how long that takes.

Seconds are those of the clock, with what the disk takes; `before_after.py` compares the CPU time
of two checkouts in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from alternate import parse_repeats, summarize
from tiny_dataset import Shape, quiet, tiny_dataset

import nnunetv2_mapo.trainer as trainer_module
from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO
from nnunetv2_mapo.guards import checkpoint
from nnunetv2_mapo.guards.checkpoint import BEST, LATEST, Begun
from nnunetv2_mapo.method import reference
from nnunetv2_mapo.support.files import hash_weights

SHAPE = Shape(case=(1, 256, 256), patch=(256, 256), batch_size=2, num_stages=8)
HASHING = (trainer_module, checkpoint, reference)


class Trainer(nnUNetTrainer_MAPO):
    mapo = MAPOConfig(warmup_epochs=1)

    def _check_network(self) -> None:
        """Not what is measured, and long with so large a network on a CPU."""

    def _rehearse(self) -> None:
        """The same."""


def main() -> None:
    repeats = parse_repeats(__doc__, default=5)
    with ExitStack() as stack:
        jobs = make_jobs(stack)
        print("| | hashed [MB] | written [MB] | s: median (min-max) |\n|---|---:|---:|---:|")
        for name, job in jobs.items():
            with _counting_hashed() as hashed:
                written = _count_written()
                job()
                written = _count_written() - written
            seconds = summarize([_time(job) for _ in range(repeats)])
            print(f"| {name} | {sum(hashed) / 1e6:.0f} | {written / 1e6:.0f} | {seconds} |")


def make_jobs(stack: ExitStack) -> dict[str, Callable[[], None]]:
    """What happens to checkpoints in a training, each as a function that can be called again."""
    dataset = stack.enter_context(tiny_dataset(SHAPE))
    trainer = dataset.make_trainer(Trainer)
    with quiet():
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))
    momentum = dict(trainer.optimizer.state)
    folder = Path(trainer.output_folder)

    def begin(number: int, begun: Begun) -> None:
        trainer.current_epoch, trainer._begun = number, begun
        trainer.optimizer.state.update(momentum)
        with quiet():
            trainer._begin_round(number)

    def save() -> None:
        with quiet():
            trainer.save_checkpoint(str(folder / LATEST))

    def resume() -> None:
        with quiet():
            trainer.load_checkpoint(str(folder / LATEST))
            trainer._read_reference()

    trainer.optimizer.state.update(momentum)
    trainer.save_checkpoint(str(folder / BEST))
    policy = hash_weights(trainer.network.state_dict())
    return {
        "start of round 1": lambda: begin(1, Begun()),
        "start of round 2": lambda: begin(2, Begun(1, policy, policy, (1,))),
        "a checkpoint": save,
        "going on from it, in a round": resume,
    }


@contextmanager
def _counting_hashed() -> Iterator[list[int]]:
    """Bytes of each network that is hashed inside a `with` block."""
    found: list[int] = []

    def hash_and_count(weights: dict[str, Any]) -> str:
        found.append(sum(tensor.nbytes for tensor in weights.values()))
        return hash_weights(weights)

    with ExitStack() as stack:
        for module in HASHING:
            stack.enter_context(patch.object(module, "hash_weights", hash_and_count))
        yield found


def _count_written() -> int:
    """Bytes that this process has written so far; Linux only."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def _time(job: Callable[[], None]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
