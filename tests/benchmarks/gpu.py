"""What a GPU has to show, in one run of less than 8 minutes: times, memory, and checks.

    python tests/benchmarks/gpu.py

It makes its own data. Steps at the sizes that nnU-Net plans (2D: 12 patches of 512², 3D: 2 of 128³)
with mixed precision, without and with torch.compile; stock trainer, warm-up and preference step are
taken in turns, and the ratios are of neighbours. Then the mining of a case of 256³, and what only
CPUs have tested: float32 margins under autocast, one set of compiled graphs, no synchronisation
that the stock step has not, going on from a checkpoint, and the comparison of `export`. Where there
is no GPU it says so and ends with code 2; with a check that fails it ends with 1.
`--device cpu --smoke` runs every line of it on small sizes.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from alternate import Ratios, summarize
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import empty_cache
from tiny_dataset import Shape, TinyDataset, quiet, tiny_dataset
from torch._dynamo.utils import counters
from train_step import DISAGREEMENT, _add_pairs

from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO
from nnunetv2_mapo.guards.checkpoint import FINAL
from nnunetv2_mapo.method import loss
from nnunetv2_mapo.method.cases import load_case
from nnunetv2_mapo.method.mining import make_miner
from nnunetv2_mapo.method.reference import build_reference
from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.tools.export import compare_logits, write_plain_model

SHAPES = {
    "2D": Shape(case=(4, 560, 560), patch=(512, 512), batch_size=12, num_stages=8),
    "3D": Shape(case=(144, 144, 144), patch=(128, 128, 128), batch_size=2, num_stages=6),
}
LARGE = Shape(case=(256, 256, 256), patch=(128, 128, 128), batch_size=2, num_stages=6)
SMOKE_SHAPES = {
    "2D": Shape(case=(2, 40, 40), patch=(32, 32), batch_size=2, num_stages=3),
    "3D": Shape(case=(20, 20, 20), patch=(16, 16, 16), batch_size=2, num_stages=3),
}
SMOKE_LARGE = Shape(case=(16, 16, 20), patch=(16, 16, 16), batch_size=2, num_stages=3)
# What the reference may be; the default is the first.
REFERENCES = sorted(
    next(each for each in fields(MAPOConfig) if each.name == "reference").metadata["valid"].choices,
    key=lambda choice: choice != MAPOConfig().reference,
)
NUM_UNTIMED = 3  # steps before those that are timed
BUDGET_S = 8 * 60


class Mapo(nnUNetTrainer_MAPO):
    mapo = MAPOConfig(warmup_epochs=1)


class Side(NamedTuple):
    """A step to be timed."""

    name: str
    step: Callable[[], Any]
    own_bytes: int  # of weights, gradients, momentum


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="small sizes, to try the script")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        trace_on_cpu()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured.")
        return 2
    return run(torch.device(arguments.device), arguments.repeats, is_smoke=arguments.smoke)


def trace_on_cpu() -> None:
    """Let nnU-Net compile on a CPU as well, but only trace, so that this takes seconds."""
    nnUNetTrainer._do_i_compile = lambda _: os.environ["nnUNet_compile"] == "True"
    torch.compile = partial(torch.compile, backend="eager")


def run(device: torch.device, repeats: int, *, is_smoke: bool) -> int:
    started = time.monotonic()
    shapes, large = (SMOKE_SHAPES, SMOKE_LARGE) if is_smoke else (SHAPES, LARGE)
    # Two trainers and all kinds of steps in one process, which no training has.
    torch._dynamo.config.recompile_limit = 64
    torch.backends.cudnn.benchmark = True  # as nnU-Net does
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    failed = 0
    print("| | compiled | ms: median (min-max) | / stock | peak GB |\n|---|---|---:|---:|---:|")
    steps = [partial(time_steps, *size, device, repeats) for size in shapes.items()]
    parts: list[Callable[[], int]] = [
        *(partial(each, is_compiled=False) for each in steps),
        partial(time_mining, large, device),
        partial(run_checks, shapes["2D"], device),
        *(partial(each, is_compiled=True) for each in steps),  # takes longest, so it comes last
    ]
    for number, part in enumerate(parts, 1):
        if time.monotonic() - started > BUDGET_S:
            print(f"Left out for want of time: parts {number} to {len(parts)} of {len(parts)}.")
            break
        failed += part()
        gc.collect()
        empty_cache(device)
    print(f"\n{time.monotonic() - started:.0f} s, {failed} checks failed")
    return 1 if failed else 0


# Steps --------------------------------------------------------------------------------------------


def time_steps(
    name: str, shape: Shape, device: torch.device, repeats: int, *, is_compiled: bool
) -> int:
    """Print a row for each kind of step; returns how many checks failed."""
    os.environ["nnUNet_compile"] = str(is_compiled)
    counters.clear()
    with tiny_dataset(shape) as dataset:
        sides = list(make_sides(dataset, device))
        num_graphs = counters["stats"]["unique_graphs"]
        seconds: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(repeats):
            for side in sides if number % 2 else reversed(sides):
                seconds[side.name].append(time_once(side.step, device))
        for side in sides:
            own = seconds[side.name]
            pairs = zip(own, seconds["stock"], strict=True)
            ratios = summarize([mine / stock for mine, stock in pairs])
            ms = summarize([1000 * each for each in own])
            peak = find_peak(side, device)
            print(
                f"| {name}, {side.name} | {'yes' if is_compiled else 'no'} | {in_ms(ms)} "
                f"| {ratios} | {peak} |",
                flush=True,
            )
        more = counters["stats"]["unique_graphs"] - num_graphs
    if not is_compiled:
        return 0
    is_settled = num_graphs > 0 and more == 0
    return say(is_settled, f"{name}: {num_graphs} compiled graphs, {more} more while timed")


def make_sides(dataset: TinyDataset, device: torch.device) -> Iterator[Side]:
    """The stock trainer's step, and MAPO's: warm-up, then preferences with each reference."""
    before = count_bytes(device)
    stock = dataset.make_trainer(nnUNetTrainer, device)
    with quiet():
        stock.on_train_start()
        stock.on_train_epoch_start()
    batch = next(stock.dataloader_train)
    yield finish_side("stock", partial(take_step, stock, pin(batch, device)), before, device)
    before = count_bytes(device)
    trainer = start(dataset, device)
    warmup = partial(take_step, trainer, pin(batch, device), _mined=None, _reference=None)
    side = finish_side("warm-up", warmup, before, device)
    yield side
    for reference in REFERENCES:
        config = replace(trainer.mapo, reference=reference)
        before = count_bytes(device) - side.own_bytes
        stage = enter_preferences(trainer, config)
        pairs = pin(_add_pairs(batch, DISAGREEMENT, config), device)
        step = partial(take_step, trainer, pairs, **stage)
        yield finish_side(f"preferences, reference {reference!r}", step, before, device)


def start(dataset: TinyDataset, device: torch.device) -> Any:
    """MAPO's trainer at its first epoch."""
    trainer = dataset.make_trainer(Mapo, device)
    with quiet():
        trainer.on_train_start()
        trainer.on_train_epoch_start()
    return trainer


def enter_preferences(trainer: Any, config: MAPOConfig) -> dict[str, Any]:
    """Attributes of a trainer in the preference stage, without mining."""
    network = None
    if config.needs_network:
        with trainer._single_output() as policy:
            network = build_reference(policy, policy.state_dict())
        if trainer._do_i_compile():
            network.compile()
    trainer.network.train()
    return {"mapo": config, "_mined": Round(Path(), {}), "_reference": network}


def take_step(trainer: Any, batch: dict[str, Any], **stage: Any) -> Any:
    """A training step with the attributes of a stage of the training."""
    vars(trainer).update(stage)
    return trainer.train_step(copy.copy(batch))


def pin(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Batch as nnU-Net's loader leaves it for a GPU, in memory that is copied from without wait."""
    if device.type != "cuda":
        return batch
    target = [each.pin_memory() for each in batch["target"]]
    return {**batch, "data": batch["data"].pin_memory(), "target": target}


def finish_side(name: str, step: Callable[[], Any], before: int, device: torch.device) -> Side:
    for _ in range(NUM_UNTIMED):  # what is compiled, chosen and allocated once
        step()
    return Side(name, step, count_bytes(device) - before)


def time_once(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the clock until the device is done."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def find_peak(side: Side, device: torch.device) -> str:
    """What a training with this step needs: its own memory, and what the step takes for a while."""
    if device.type != "cuda":
        return "–"
    torch.cuda.reset_peak_memory_stats(device)
    before = count_bytes(device)
    side.step()
    taken = torch.cuda.max_memory_allocated(device) - before
    return f"{(side.own_bytes + taken) / 1e9:.2f}"


def count_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_ms(ms: Ratios) -> str:
    return f"{ms.median:.1f} ({ms.low:.1f}-{ms.high:.1f})"


# Mining -------------------------------------------------------------------------------------------


def time_mining(shape: Shape, device: torch.device) -> int:
    """Print a row for the mining of one large case."""
    os.environ["nnUNet_compile"] = "false"
    with tiny_dataset(shape, num_cases=2) as dataset:
        trainer = dataset.make_trainer(Mapo, device)
        with quiet():
            training = trainer.get_tr_and_val_datasets()[0]
        image, segmentation = load_case(training, trainer.label_manager, training.identifiers[0])
        with trainer._single_output() as network:
            plan = trainer.configuration_manager
            miner = make_miner(trainer.mapo, network, trainer.sampler, trainer.labels, plan, device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            truth = torch.from_numpy(segmentation[0])
            seconds = time_once(partial(miner.mine, image, truth), device)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0
    voxels = " x ".join(map(str, shape.case))
    what = f"mining of {voxels}, {len(trainer.sampler.values)} rates"
    print(f"| {what} | no | {1000 * seconds:.0f} | – | {f'{peak:.2f}' if peak else '–'} |\n")
    return 0


# Checks -------------------------------------------------------------------------------------------


def run_checks(shape: Shape, device: torch.device) -> int:
    """Print what only CPUs have tested, and whether it holds here; returns how many do not."""
    os.environ["nnUNet_compile"] = "false"
    checks = (check_precision, check_synchronisation, check_resume, check_export)
    with tiny_dataset(shape) as dataset:
        failed = sum(check(dataset, device) for check in checks)
    print()
    return failed


def say(holds: bool, what: str) -> int:
    """Print a check; returns 1 if it failed."""
    print(f"- {'holds' if holds else '**FAILS**'}: {what}", flush=True)
    return int(not holds)


def check_precision(dataset: TinyDataset, device: torch.device) -> int:
    """Margins and their loss are float32 where the network's output is not, and finite."""
    trainer, batch = start_preferences(dataset, device)
    seen: dict[str, list[torch.Tensor]] = {"output": [], "margin": [], "loss": []}
    margins, preference_loss = loss.voxel_margins, loss.preference_loss

    def note(kind: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def noting(*arguments: Any, **keywords: Any) -> torch.Tensor:
            result = function(*arguments, **keywords)
            seen[kind].append(result.detach())
            return result

        return noting

    hook = trainer.loss.register_forward_pre_hook(
        lambda _, inputs: seen["output"].append(inputs[0][0].detach())
    )
    loss.voxel_margins = note("margin", margins)
    loss.preference_loss = note("loss", preference_loss)
    try:
        trainer.train_step(batch)
    finally:
        loss.voxel_margins, loss.preference_loss = margins, preference_loss
        hook.remove()
    types = {kind: {each.dtype for each in values} for kind, values in seen.items()}
    output = torch.float16 if device.type == "cuda" else torch.float32  # nnU-Net's autocast
    expected = {"output": {output}, "margin": {torch.float32}, "loss": {torch.float32}}
    is_finite = all(bool(each.isfinite().all()) for each in [*seen["margin"], *seen["loss"]])
    named = ", ".join(f"{kind} {'/'.join(map(str, each))}" for kind, each in types.items())
    return say(types == expected and is_finite, f"{named}, finite: {is_finite}")


def check_synchronisation(dataset: TinyDataset, device: torch.device) -> int:
    """MAPO's step waits for the device no more often than the stock trainer's."""
    trainer, batch = start_preferences(dataset, device)
    stock = dataset.make_trainer(nnUNetTrainer, device)
    with quiet():
        stock.on_train_start()
        stock.on_train_epoch_start()
    ours = count_waits(lambda: trainer.train_step(copy.copy(batch)), device)
    stock_batch = pin(next(stock.dataloader_train), device)
    theirs = count_waits(lambda: stock.train_step(copy.copy(stock_batch)), device)
    return say(ours <= theirs, f"{ours} synchronisations in a preference step, {theirs} in stock's")


def count_waits(step: Callable[[], Any], device: torch.device) -> int:
    """Synchronising calls of one step, by torch's own warnings; 0 on a CPU."""
    step()
    if device.type != "cuda":
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def check_resume(dataset: TinyDataset, device: torch.device) -> int:
    """A checkpoint of the preference stage gives the same weights, momentum and random numbers."""
    trainer, batch = start_preferences(dataset, device)
    for _ in range(NUM_UNTIMED):  # the first may overflow in float16 and be skipped
        trainer.train_step(copy.copy(batch))
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    with quiet():
        trainer.save_checkpoint(str(path))
    drawn = torch.rand(3, device=device)
    again = dataset.make_trainer(type(trainer), device)
    with quiet():
        again.load_checkpoint(str(path))
    again._restore_random_state()
    is_same = torch.equal(torch.rand(3, device=device), drawn)
    for ours, theirs in (
        (trainer.network.state_dict(), again.network.state_dict()),
        (momentum_of(trainer), momentum_of(again)),
    ):
        is_same &= ours.keys() == theirs.keys()
        is_same &= all(torch.equal(ours[name], theirs[name]) for name in ours)
    return say(is_same, "a training goes on with the same weights, momentum and random numbers")


def momentum_of(trainer: Any) -> dict[Any, torch.Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return {number: each["momentum_buffer"] for number, each in state.items()}


def check_export(dataset: TinyDataset, device: torch.device) -> int:
    """nnU-Net alone computes with an exported model what it computes with ours."""
    trainer = dataset.make_trainer(nnUNetTrainer_MAPO, device)  # one that nnU-Net finds
    with quiet():
        trainer.on_train_start()
        trainer.train_step(next(trainer.dataloader_train))
        trainer.save_checkpoint(str(Path(trainer.output_folder) / FINAL))
    model = Path(trainer.output_folder_base)
    is_same, what = True, "export: nnU-Net alone computes the same logits, bit for bit"
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name, "plain")
        write_plain_model(model, [0], FINAL, plain, nnUNetTrainer.__name__)
        try:
            with quiet():
                compare_logits(model, plain, [0], FINAL, str(device), Path(name))
        except Exception as error:
            is_same, what = False, f"export: {error}"
    return say(is_same, what)


def start_preferences(dataset: TinyDataset, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """A trainer in the preference stage, and a batch in which every patch has a pair."""
    trainer = start(dataset, device)
    batch = next(trainer.dataloader_train)
    vars(trainer).update(enter_preferences(trainer, trainer.mapo))
    return trainer, pin(_add_pairs(batch, DISAGREEMENT, trainer.mapo), device)


if __name__ == "__main__":
    sys.exit(main())
