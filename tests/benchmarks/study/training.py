"""Trains and evaluates one cell with nnU-Net's and MAPO's own trainers."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.guards.base_checkpoint import VARIABLE
from nnunetv2_mapo.guards.fine_tuning import FINAL
from nnunetv2_mapo.method import choices
from nnunetv2_mapo.method.store import PREFERENCES, read_rounds
from nnunetv2_mapo.trainer import MAPOTrainer

from .arms import ARMS, STOCK, Arm, build_config, read_shipped
from .outlines import draw_outlines
from .plan import Cell
from .preparation import OUTLINED, PLANS, UNLABELLED, prepare, use_folders
from .protocol import DATASETS, FOLD, REGIMES, VALIDATION_STEPS, fingerprint
from .provenance import describe_machine
from .study_trainer import StudyTrainer
from .validation import CaseMetrics


@dataclass(frozen=True)
class Settings:
    """Where and how cells are trained.

    Attributes:
        work: Work folder.
        data: Folder of the raw data sets, where known.
        device: Name of torch's.
        threads: Of torch, on the CPU.
        steps: An epoch, instead of the regime's, for a smoke test.
    """

    work: Path
    data: Path | None = None
    device: str = "cpu"
    threads: int = 1
    steps: int | None = None

    def results(self, cell: Cell) -> Path:
        """nnU-Net's results folder of a regime and seed; it names folders after the trainer."""
        return self.work / ("smoke" if self.steps else "models") / cell.regime / f"seed_{cell.seed}"

    def model(self, cell: Cell) -> Path:
        """Folder of the cell's fold."""
        dataset = DATASETS[cell.dataset]
        name = f"{class_name(cell)}__{PLANS}__{dataset.configuration}"
        return self.results(cell) / dataset.folder / name / f"fold_{FOLD}"

    def log(self, cell: Cell) -> Path:
        """File of all that nnU-Net prints."""
        return self.work / "logs" / f"{cell.name.replace('/', '-')}.txt"


def class_name(cell: Cell) -> str:
    """Name of a cell's trainer class."""
    return f"StudyTrainer_{cell.arm}"


def base_cell(cell: Cell) -> Cell | None:
    """Cell whose model this one starts from; None for random weights."""
    regime = REGIMES[cell.regime].starts_from
    return cell._replace(regime=regime, arm=STOCK) if regime else None


def build_trainer_class(cell: Cell, settings: Settings) -> type[StudyTrainer]:
    """Trainer class of a cell.

    Raises:
        UnknownSettingsError: The package does not know the arm's settings.
    """
    regime, arm = REGIMES[cell.regime], ARMS[cell.arm]
    body: dict[str, Any] = {
        "seed": cell.seed,
        "epochs": regime.num_epochs,
        "steps": settings.steps or regime.num_steps,
        "validation_steps": VALIDATION_STEPS,
        "tolerance": DATASETS[cell.dataset].tolerance,
        "__module__": __name__,
    }
    if arm is not None:
        config = build_config(arm, regime)
        if "nsd" in config.metric:
            config = replace(config, tolerance_mm=DATASETS[cell.dataset].tolerance)
        body |= {"mapo": config, "more_loss": arm.loss}
        return type(class_name(cell), (MAPOTrainer, StudyTrainer), body)
    if (base := base_cell(cell)) is not None:  # what the shipped settings do to the base's length
        shipped = read_shipped(regime.variant)
        body["epochs"] = shipped.num_epochs(2, regime.num_epochs)
        body["learning_rate"] = StudyTrainer.learning_rate * shipped.learning_rate_factor
        body["weights"] = settings.model(base) / FINAL
    return type(class_name(cell), (StudyTrainer,), body)


def train_cell(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Train and evaluate a cell; what nnU-Net prints goes to its log file.

    Returns:
        Content of the cell's file.
    """
    torch.set_num_threads(settings.threads)
    trainer_class = build_trainer_class(cell, settings)
    log = settings.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as file,
        redirect_stdout(file),
        redirect_stderr(file),
        warnings.catch_warnings(),
        fast_loader(),
    ):
        warnings.simplefilter("ignore")
        root = prepare(DATASETS[cell.dataset], settings.data, settings.work)
        use_folders(root, settings.results(cell))
        shutil.rmtree(settings.model(cell).parent, ignore_errors=True)  # a cell begun before
        try:
            return _train(cell, trainer_class, settings, root)
        finally:
            gc.collect()


def _train(
    cell: Cell, trainer_class: type[StudyTrainer], settings: Settings, root: Path
) -> dict[str, Any]:
    device = torch.device(settings.device)
    with fine_tuning_from(cell, settings), learning_from(cell, settings, root):
        trainer = make_trainer(cell, trainer_class, root, device)
        started, cpu_started = time.monotonic(), time.process_time()
        trainer.run_training()
    trained = time.monotonic()
    trainer.perform_actual_validation()
    ended = time.monotonic()
    assert trainer.cases is not None
    mining = read_mining_seconds(Path(trainer.log_file).read_text())
    seconds = {
        "training": trained - started - mining,
        "mining": mining,
        "validation": ended - trained,
        "all": ended - started,
        "cpu": time.process_time() - cpu_started,  # of all: what other jobs leave out
    }
    num_steps = trainer.num_epochs * trainer.num_iterations_per_epoch
    config = getattr(trainer, "mapo", None)
    rounds = count_pairs(settings.model(cell))
    shutil.rmtree(settings.model(cell) / PREFERENCES, ignore_errors=True)  # most of a cell's bytes
    return {
        **dict(zip(Cell._fields, cell, strict=True)),
        "protocol": fingerprint(DATASETS[cell.dataset], REGIMES[cell.regime]),
        "steps": num_steps,
        "seconds": seconds,
        "machine": describe_machine(device, settings.threads),
        "settings": config.to_dict() if config else None,
        "rounds": rounds,
        "pseudo_dice": trainer.logger.get_value("mean_fg_dice", step=None),
        **describe_cases(trainer.cases),
    }


def make_trainer(cell: Cell, trainer_class: type[StudyTrainer], root: Path, device: Any) -> Any:
    """As `nnUNetv2_train` makes one, of a class that it would not find."""
    dataset = DATASETS[cell.dataset]
    folder = root / "preprocessed" / dataset.folder
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    plans["continue_training"] = False
    dataset_json = json.loads((folder / "dataset.json").read_text())
    return trainer_class(plans, dataset.configuration, FOLD, dataset_json, device)


def fine_tuning_from(cell: Cell, settings: Settings) -> Any:
    """Let the package's variable name the base of a cell inside a `with` block."""
    base = base_cell(cell)
    named = {VARIABLE: str(settings.model(base) / FINAL)} if base else {}
    return patch.dict("os.environ", named)


def learning_from(cell: Cell, settings: Settings, root: Path) -> Any:
    """Let the package's variable name the choices of a simulated expert inside a `with` block.

    They are made by the package's own command, once for each base and expert.
    """
    arm = ARMS[cell.arm]
    if cell.regime != "choices" or arm is None:
        return nullcontext()
    folder = ask(cell, arm, settings, root)
    if arm.num_outlines:
        outlined = folder.with_name(f"{cell.dataset}-{arm.num_outlines}_outlines-{os.getpid()}")
        shutil.rmtree(outlined, ignore_errors=True)
        draw_outlines(folder, root / OUTLINED, outlined, arm.num_outlines, cell.seed)
        folder = outlined
    return patch.dict("os.environ", {choices.VARIABLE: str(folder)})


def ask(cell: Cell, arm: Arm, settings: Settings, root: Path) -> Path:
    """Ask the simulated expert of an arm, unless that was done before; the folder of choices."""
    asked = "_".join(option.strip("-") for option in arm.asked) or "best_and_worst"
    folder = settings.results(cell) / "choices" / f"{cell.dataset}-{asked}"
    base = base_cell(cell)
    assert base is not None
    if folder.is_dir():
        return folder
    own = folder.with_name(f"{folder.name}-{os.getpid()}")  # another process may ask as well
    shutil.rmtree(own, ignore_errors=True)
    labels = root / "raw" / DATASETS[cell.dataset].folder / "labelsTr"
    arguments = ["choose", str(settings.model(base).parent), "-f", str(FOLD)]
    arguments += ["-i", str(root / UNLABELLED), "-o", str(own), "-device", settings.device]
    arguments += ["--truth", str(labels), "--seed", str(cell.seed), *arm.asked]
    with patch(
        "nnunetv2.inference.predict_from_raw_data.recursive_find_trainer_class_by_name",
        lambda _: StudyTrainer,
    ):
        if main(arguments) != 0:
            message = f"the expert could not choose: {' '.join(arguments)}"
            raise RuntimeError(message)
    try:
        own.rename(folder)
    except OSError:  # it was faster
        shutil.rmtree(own)
    return folder


@contextmanager
def fast_loader() -> Iterator[None]:
    """Spare nnU-Net's loader the search for thread pools that it makes for every batch."""
    name = "nnunetv2.training.dataloading.data_loader.threadpool_limits"
    with patch(name, lambda **_: nullcontext()):  # there is one thread anyway
        yield


def read_mining_seconds(log: str) -> float:
    """Sum of what the lines of the rounds say."""
    return sum(map(float, re.findall(r"cases mined in ([\d.]+) s", log)))


def count_pairs(fold: Path) -> list[dict[str, float]]:
    """Samples, pairs and mean plain Dice of each round."""
    rounds = []
    for mined in read_rounds(fold):
        samples = [sample for case in mined.cases.values() for sample in case]
        rounds.append(
            {
                "samples": len(samples),
                "pairs": sum(sample.num_disagreeing > 0 for sample in samples),
                "dice_plain": float(np.mean([sample.dice[0] for sample in samples])),
            }
        )
    return rounds


def describe_cases(cases: CaseMetrics) -> dict[str, Any]:
    """Metrics as the cell's file has them: mean over the classes, and each class if several."""
    means = {}
    for metric, classes in cases.values.items():
        values = np.array(list(classes.values()), dtype=float)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all NaN
            means[metric] = np.nanmean(values, axis=0).tolist()
    content = {"cases": cases.names, "metrics": means}
    if len(next(iter(cases.values.values()))) > 1:
        content["class_metrics"] = cases.values
    return content
