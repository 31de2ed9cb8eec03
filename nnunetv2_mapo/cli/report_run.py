"""The steps of a report: read a model's folder, paint pairs, compare, write the page."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup
from tqdm import tqdm

from nnunetv2_mapo.checks import InputError
from nnunetv2_mapo.cli.nnunet import CommandError
from nnunetv2_mapo.cli.preview_run import choose_device
from nnunetv2_mapo.cli.report_results import render_results
from nnunetv2_mapo.compared import ComparisonError
from nnunetv2_mapo.evaluation import EvaluationError
from nnunetv2_mapo.files import WriteError
from nnunetv2_mapo.history import HistoryError, find_checkpoint, read_history
from nnunetv2_mapo.page import write_page
from nnunetv2_mapo.pair_pictures import PairPainter, name_colours
from nnunetv2_mapo.report import (
    FoldPart,
    describe_fold,
    describe_round,
    list_settings,
    list_versions,
)
from nnunetv2_mapo.store import StoreError, read_rounds
from nnunetv2_mapo.trained_model import ModelError, open_cases, open_model

ERRORS = (
    ComparisonError, EvaluationError, HistoryError, InputError, ModelError, StoreError, WriteError,
)  # fmt: skip


def run_report(arguments: argparse.Namespace) -> None:
    """Write the report of a model from the parsed command line.

    Raises:
        CommandError: Something is missing or damaged.
    """
    run = ReportRun(
        folder=arguments.model.expanduser().absolute(),
        others=[other.expanduser().absolute() for other in arguments.compare],
        compares_warmup=arguments.warmup,
        device=choose_device(arguments.device),
    )
    output = (arguments.o or run.folder / "report.html").expanduser().absolute()
    try:
        run.write(output, run.find_folds(arguments.f))
    except ERRORS as error:
        raise CommandError(str(error)) from error
    print(f"Written: {output}")


@dataclass(frozen=True)
class ReportRun:
    """The making of a report.

    Attributes:
        folder: Model folder, `nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        others: Model folders to compare with, the baseline first.
        compares_warmup: Whether to compare with the weights after the warm-up too.
        device: Where the network runs.
    """

    folder: Path
    others: list[Path]
    compares_warmup: bool
    device: torch.device

    def find_folds(self, wanted: list[str] | None) -> list[str]:
        """Folds to show.

        Raises:
            CommandError: There is none, or not the wanted one.
        """
        found = sorted(path.name.removeprefix("fold_") for path in self.folder.glob("fold_*"))
        if not found or self.folder.name.count("__") != 2:
            message = (
                f"{self.folder} is not the folder of a model: it is named "
                "nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION and has fold_0 or others."
            )
            raise CommandError(message)
        if missing := sorted(set(wanted or ()) - set(found)):
            message = (
                f"{self.folder} has no fold {', '.join(missing)}. There is: {', '.join(found)}."
            )
            raise CommandError(message)
        return wanted or found

    def write(self, output: Path, folds: list[str]) -> None:
        """Write the page with these folds."""
        trainer, plans, configuration = self.folder.name.split("__")
        results, no_results = self.find_results(folds)
        parts = [self.describe_fold(fold) for fold in tqdm(folds, desc="report", unit="fold")]
        config = read_history(self.folder / f"fold_{folds[0]}").config
        write_page(
            output,
            "report.html",
            trainer=trainer,
            dataset=self.folder.parent.name,
            configuration=configuration,
            plans=plans,
            date=time.strftime("%Y-%m-%d"),
            folder=str(self.folder),
            results=results,
            no_results=no_results,
            folds=parts,
            settings=list_settings(config),
            versions=list_versions(),
        )

    def find_results(self, folds: list[str]) -> tuple[Markup | None, str]:
        """Results part of the page, or why there is none."""
        device = self.device if self.compares_warmup else None
        try:
            return render_results(self.folder, self.others, folds, device), ""
        except ComparisonError as error:
            if self.others or self.compares_warmup:
                raise
            return None, f"There are no results: {error}"

    def describe_fold(self, fold: str) -> FoldPart:
        """Part of a fold."""
        path = self.folder / f"fold_{fold}"
        history, mined = read_history(path), read_rounds(path)
        notes = []
        if history.num_epochs_done < history.num_epochs:
            done = f"{history.num_epochs_done} of {history.num_epochs} epochs"
            notes.append(f"This training is not finished: {done} are in {history.checkpoint.name}.")
        painter = None
        if mined:
            try:
                painter = self._open_painter(fold)
            except (ModelError, InputError) as error:
                notes.append(f"There are no pictures of pairs: {error}")
        elif history.num_epochs_done > history.stages[0].end_epoch:
            notes.append("No round is in the folder preferences: not mined yet, or deleted.")
        rounds = [
            describe_round(
                each,
                history.num_dimensions,
                painter.paint(each) if painter and each in (mined[0], mined[-1]) else (),
            )
            for each in mined
        ]
        legend = name_colours(painter.model) if painter else []
        return describe_fold(fold, history, rounds, notes, legend)

    def _open_painter(self, fold: str) -> PairPainter:
        checkpoint = find_checkpoint(self.folder / f"fold_{fold}").name
        model = open_model(self.folder, fold, checkpoint, self.device)
        return PairPainter(model, open_cases(model).training, self.device)
