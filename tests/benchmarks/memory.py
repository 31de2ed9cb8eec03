"""Peak memory of a whole training with warm-up, mining and preferences against a stock one.

Each training runs in a process of its own, two epochs of a few steps, of which the second one is
the preference stage; its peak resident memory is what the operating system reports (`ru_maxrss`).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

DIMENSIONS = ("2D", "3D")
BAR = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _train(*arguments.child)
        return
    peaks = [_run_pairs(dimensions, arguments.repeats) for dimensions in DIMENSIONS]
    # Only now: the peak of a child on Linux starts with the size of its parent.
    from alternate import Row, print_table, summarize

    rows = []
    for dimensions, pairs in zip(DIMENSIONS, peaks, strict=True):
        rows.append(Row(f"{dimensions}, peak", summarize([a[1] / b[1] for a, b in pairs]), BAR))
        grown = [(a[1] - a[0]) / (b[1] - b[0]) for a, b in pairs]
        rows.append(Row(f"{dimensions}, peak above the imported libraries", summarize(grown)))
    print_table(rows)


def _run_pairs(dimensions: str, repeats: int) -> list[tuple[list[int], list[int]]]:
    """Peaks after the imports and at the end, in KiB, of MAPO's and the stock trainer in turns."""

    def run(trainer: str) -> list[int]:
        command = [sys.executable, str(Path(__file__)), "--child", trainer, dimensions]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [int(peak) for peak in output.split()]

    return [(run("mapo"), run("stock")) for _ in range(repeats)]


def _train(trainer_name: str, dimensions: str) -> None:
    """Train in this process, and print its peak after the imports and at the end."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from tiny_dataset import Shape, quiet, tiny_dataset

    from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO

    class Preferences(nnUNetTrainer_MAPO):
        # so small a gap that every case has a pair: no reference forward pass is skipped
        mapo = MAPOConfig(warmup_epochs=1, tau=1e-4)

    shape = {
        "2D": Shape(case=(1, 128, 128), patch=(128, 128), batch_size=8, num_stages=6),
        "3D": Shape(case=(32, 48, 48), patch=(32, 48, 48), batch_size=2, num_stages=4),
    }[dimensions]
    torch.set_num_threads(1)
    imported = _peak()
    with tiny_dataset(shape) as dataset:
        trainer = dataset.make_trainer(Preferences if trainer_name == "mapo" else nnUNetTrainer)
        trainer.num_epochs, trainer.num_iterations_per_epoch = 2, 2
        trainer.num_val_iterations_per_epoch = 1
        with quiet():
            trainer.run_training()
    print(imported, _peak())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
