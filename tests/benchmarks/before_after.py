"""Mining, preference step and checkpoints of this checkout against another one's, in turns.

    python tests/benchmarks/before_after.py CHECKOUT_BEFORE

Each side is a process of its own that imports its checkout. Training has dropout on both sides, so
that a changed default changes nothing.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
JOBS = (
    "mining 2D", "mining 3D", "step 2D", "step 3D",
    "start of round 1", "start of round 2", "a checkpoint", "going on from it, in a round",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("--only", default="", help="comparisons whose name holds this text")
    parser.add_argument("--repeats", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _answer(arguments.before)
        return
    from alternate import Row, print_table, summarize

    before, after = (_start(checkout) for checkout in (arguments.before.resolve(), HERE))
    rows = []
    for job in (job for job in JOBS if arguments.only in job):
        ratios = []
        for number in range(arguments.repeats):
            order = (before, after) if number % 2 else (after, before)
            seconds = {side: _ask(side, job) for side in order}
            ratios.append(seconds[after] / seconds[before])
        rows.append(Row(f"{job}, after / before", summarize(ratios)))
    print_table(rows)
    for side in (before, after):
        side.communicate()  # closes its input, which ends it


def _start(checkout: Path) -> subprocess.Popen[str]:
    side = subprocess.Popen(
        [sys.executable, __file__, str(checkout), "--child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert side.stdout
    side.stdout.readline()  # it is ready
    return side


def _ask(side: subprocess.Popen[str], job: str) -> float:
    assert side.stdin
    assert side.stdout
    side.stdin.write(f"{job}\n")
    side.stdin.flush()
    return float(side.stdout.readline())


def _answer(checkout: Path) -> None:
    """Do what the standard input names, answer with the CPU time in s."""
    sys.path.insert(0, str(checkout / "tests" / "benchmarks"))
    answer = sys.stdout
    with ExitStack() as stack, redirect_stdout(sys.stderr):
        jobs = _make_jobs(stack)
        for job in jobs.values():
            job()
        print("ready", file=answer, flush=True)
        for line in sys.stdin:
            started = time.process_time()
            jobs[line.strip()]()
            print(time.process_time() - started, file=answer, flush=True)


def _make_jobs(stack: ExitStack) -> dict[str, Any]:
    import checkpoints
    import torch
    import train_step
    from tiny_dataset import tiny_dataset

    from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO
    from nnunetv2_mapo.method.cases import load_case
    from nnunetv2_mapo.method.mining import make_miner

    class WithDropout(nnUNetTrainer_MAPO):
        mapo = MAPOConfig(warmup_epochs=1, warmup_dropout=True, preference_dropout="without pair")

    torch.set_num_threads(1)
    jobs = {}
    for name in ("2D", "3D"):
        dataset = stack.enter_context(tiny_dataset(train_step.SHAPES[name]))
        trainer = dataset.make_trainer(WithDropout)
        train_step._enter(trainer, epoch=0)
        batch = next(trainer.dataloader_train)
        train_step._enter(trainer, epoch=1)
        pairs = train_step._add_pairs(batch, train_step.DISAGREEMENT, trainer.mapo)
        training = trainer.get_tr_and_val_datasets()[0]
        case = load_case(training, trainer.label_manager, training.identifiers[0])

        def mine(trainer: Any = trainer, case: Any = case) -> None:
            with trainer._single_output() as network:
                plan, device = trainer.configuration_manager, trainer.device
                args = (trainer.mapo, network, trainer.sampler, trainer.labels, plan, device)
                make_miner(*args).mine(case[0], torch.from_numpy(case[1][0]))

        def step(trainer: Any = trainer, pairs: Any = pairs) -> None:
            trainer.network.train()
            trainer.train_step(copy.copy(pairs))

        jobs |= {f"mining {name}": mine, f"step {name}": step}
    return jobs | checkpoints.make_jobs(stack)


if __name__ == "__main__":
    main()
