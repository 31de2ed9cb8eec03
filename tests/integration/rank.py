"""One rank of a distributed training on the CPU, started by `test_distributed.py`.

nnU-Net assumes CUDA in two places, which are replaced here: the trainer takes the GPU of its rank
as device, and `DistributedDataParallel` gets that GPU's number.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_mapo import trainer as mapo
from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.support.files import hash_weights


def make_trainer(dataset: str, name: str, fold: str) -> Any:
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    trainer = get_trainer_from_args(dataset, "3d_fullres", int(fold), name)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    return trainer


def note_calls(owner: Any, name: str, noted: list[str]) -> None:
    """Add a function's name to a list with each call."""
    function = getattr(owner, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        noted.append(name)
        return function(*arguments, **keywords)

    setattr(owner, name, call)


def train(trainer: Any) -> dict[str, Any]:
    """Train to the end; what this rank did and saw."""
    mined_here, write_case = [], Round.write_case

    def write_and_note(self: Round, identifier: str, *arguments: Any) -> None:
        mined_here.append(identifier)
        write_case(self, identifier, *arguments)

    Round.write_case = write_and_note  # type: ignore[method-assign]
    written: list[str] = []
    note_calls(mapo, "write_reference", written)
    note_calls(mapo, "plot_progress", written)
    note_calls(Round, "write_manifest", written)
    note_calls(torch, "save", written)
    trainer.run_training()
    cases, _ = trainer.get_tr_and_val_datasets()
    logged = trainer.logger.local_logger.my_fantastic_logging
    return {
        "mined": mined_here,
        "written": sorted(set(written)),
        "batch_size": trainer.batch_size,
        "channels": {name: len(cases.load_case(name)[1][:]) for name in cases.identifiers},
        "summary": [trainer._summary.num_pairs, trainer._summary.gaps],
        "is_finite": all(w.isfinite().all().item() for w in trainer.network.parameters()),
        "weights": hash_weights(trainer._plain_network().state_dict()),
        "reference": trainer._begun.reference,
        "logged": {key: values for key, values in logged.items() if "/" in key},
    }


def spoil_a_step(trainer: Any, rank: int) -> None:
    """Give the second rank an image of NaN in a step of the warm-up and one of round 1."""
    train_step, steps = trainer.train_step, []

    def spoiled(batch: dict[str, Any]) -> dict[str, Any]:
        steps.append(rank)  # the first one is rehearsed
        if rank == 1 and len(steps) in (3, 9):
            batch["data"] = torch.full_like(batch["data"], torch.nan)
        return train_step(batch)

    trainer.train_step = spoiled


def step(trainer: Any, folder: Path) -> dict[str, Any]:
    """Take the first step of round 1; keep its batch and its gradient."""
    trainer.on_train_start()
    trainer.current_epoch = trainer.schedule.stages[0].end_epoch
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    for group in trainer.optimizer.param_groups:
        group.update(lr=0)
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    gradients = [parameter.grad for parameter in trainer._plain_network().parameters()]
    batch = {key: batch[key] for key in ("data", "target")}
    torch.save({"batch": batch, "gradients": gradients}, folder / f"step_{dist.get_rank()}.pth")
    return {}


def main() -> None:
    torch.set_num_threads(1)
    LocalLogger.plot_progress_png = lambda *_: None
    rank, folder, dataset, name, fold, task = int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
    dist.init_process_group("gloo", f"file://{folder}/{task}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    np.random.seed(rank)  # noqa: NPY002  # nnU-Net draws from it
    trainer = make_trainer(dataset, name, fold)
    if task == "spoiled":
        spoil_a_step(trainer, rank)
    report = step(trainer, folder) if task == "step" else train(trainer)
    (folder / f"{task}_{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
