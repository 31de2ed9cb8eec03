"""What a training will cost here: time of mining, memory, threads that slow it down."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from nnunetv2_mapo.method.cases import open_case
from nnunetv2_mapo.method.mining import Miner, make_miner, mine_within_memory
from nnunetv2_mapo.method.rounds import draw_cases
from nnunetv2_mapo.method.volumes import Channel
from nnunetv2_mapo.support.device import untouched
from nnunetv2_mapo.support.table import format_duration
from nnunetv2_mapo.tools.doctor.checks import NOTE, OK, Finding

# Measured: a step with pairs / the stock trainer's, see docs/reference/benchmarks.md; with the
# reference as a second network, and without.
_STEP_FACTORS = {True: 1.3, False: 1.02}
_MEMORY_FACTORS = {2: 1.08, 3: 1.04}  # the same of a training's peak memory, by dimensions
_NUM_TIMED = 3  # forward passes of which the median counts
# Threads that wait without spinning leave busy cores to those that compute. Not OMP_THREAD_LIMIT:
# PyTorch's convolutions wait for ever for the threads that it withholds.
_WAIT_POLICY, _PASSIVE = "OMP_WAIT_POLICY", "PASSIVE"


def estimate_costs(trainer: Any, training: Any) -> Iterator[Finding]:
    """Mine one case, as a round would, and say what that means for all rounds.

    Args:
        trainer: With MAPO, initialised.
        training: nnU-Net's dataset of its training cases.
    """
    num_rounds = len(trainer.schedule.stages) - 1
    if num_rounds == 0 or trainer.mapo.learns_unlabelled:
        return
    cases = sorted(map(str, training.identifiers))
    case = cases[len(cases) // 2]
    image, truth = open_case(training, trainer.label_manager, case)
    with untouched(trainer.device), trainer._single_output() as network:
        plan = trainer.configuration_manager
        miner = make_miner(
            trainer.mapo, network, trainer.sampler, trainer.labels, plan, trainer.device
        )
        mine = partial(Miner.mine, image=image, segmentation=Channel(truth, 0))
        started = time.monotonic()
        mine_within_memory(miner, mine, case, print)
        seconds = time.monotonic() - started
    num_cases = len(draw_cases(cases, trainer.mapo, 1))
    total = format_duration(seconds * num_cases * num_rounds)
    what = (
        f"mining takes about {seconds:.2g} s a case ({case}, untrained), {total} for {num_rounds} "
        f"rounds of {num_cases} cases; a step of a round about "
        f"{_STEP_FACTORS[trainer.mapo.needs_network]} times the stock trainer's"
    )
    if not trainer.mapo.needs_network:  # of which it was not measured
        what += f", peak memory {_MEMORY_FACTORS[len(plan.patch_size)]} times"
    if trainer.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(trainer.device) / 1e9
        what += f"; {peak:.1f} GB of the device were needed so far"
    yield Finding(OK, what)


def check_threads(trainer: Any) -> Iterator[Finding]:
    """Say where the threads with which nnU-Net trains on a CPU are slower than a single one.

    Not where they wait as they should: the rest is nnU-Net's.
    """
    if os.environ.get(_WAIT_POLICY, "").upper() == _PASSIVE:
        return
    num_threads, before = multiprocessing.cpu_count(), torch.get_num_threads()
    shape = (1, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    network, images = trainer.network, torch.zeros(shape)
    try:
        many, one = (_time(network, images, number) for number in (num_threads, 1))
    finally:
        torch.set_num_threads(before)
    if num_threads > 1 and many > one:
        what = (
            f"nnU-Net computes with {num_threads} threads here, which takes {many / one:.1f} times "
            "as long as with one: the network is small, or the cores are busy"
        )
        yield Finding(NOTE, what, f"{_WAIT_POLICY}={_PASSIVE} nnUNetv2_train …")


def _time(network: torch.nn.Module, images: torch.Tensor, num_threads: int) -> float:
    """Median seconds of a forward pass; the first one is not timed."""
    torch.set_num_threads(num_threads)
    durations = []
    with torch.inference_mode():
        for _ in range(_NUM_TIMED + 1):
            started = time.perf_counter()
            network(images)
            durations.append(time.perf_counter() - started)
    return median(durations[1:])
