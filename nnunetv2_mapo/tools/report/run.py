"""The steps of a report: read a model's folder, paint pairs, compare, write the page."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup
from tqdm import tqdm

from nnunetv2_mapo.method.store import StoreError, read_rounds
from nnunetv2_mapo.support.errors import CommandError, InputError
from nnunetv2_mapo.support.files import WriteError
from nnunetv2_mapo.tools.compare import ComparisonError
from nnunetv2_mapo.tools.device import choose_device
from nnunetv2_mapo.tools.evaluate.case_metrics import EvaluationError
from nnunetv2_mapo.tools.history import History, HistoryError, read_history
from nnunetv2_mapo.tools.models import ModelError, open_cases, open_model
from nnunetv2_mapo.tools.page import write_page
from nnunetv2_mapo.tools.report.pair_pictures import PairPainter, name_colours
from nnunetv2_mapo.tools.report.report import (
    FoldPart,
    describe_fold,
    describe_round,
    list_settings,
    list_versions,
)
from nnunetv2_mapo.tools.report.results import render_results

ERRORS = (
    ComparisonError, EvaluationError, HistoryError, InputError, ModelError, StoreError, WriteError,
)  # fmt: skip


def run_report(arguments: argparse.Namespace) -> None:
    """Write the report of a model from the parsed command line.

    Raises:
        CommandError: Something is missing or damaged.
    """
    run = ReportRun(
        folder=arguments.model.expanduser().resolve(),
        others=[other.expanduser().resolve() for other in arguments.compare],
        compares_warmup=arguments.warmup,
        device=choose_device(arguments.device),
    )
    output = (arguments.o or run.folder / "report.html").expanduser().absolute()
    try:
        run.write(output, arguments.f)
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

    def read_histories(self, wanted: list[str] | None) -> dict[str, History]:
        """Trainings of the folds to show; folds that cannot be read are named and left out.

        Args:
            wanted: Folds that must be shown; None: all that there are.

        Raises:
            CommandError: There is none, or not the wanted one.
            HistoryError: A wanted one cannot be read.
        """
        paths = sorted(path for path in self.folder.glob("fold_*") if path.is_dir())
        found = [path.name.removeprefix("fold_") for path in paths]
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
        histories = {}
        for fold in wanted or found:
            if history := self._read_history(fold, is_wanted=wanted is not None or len(found) == 1):
                histories[fold] = history
        if not histories:
            message = f"None of the folds {', '.join(found)} of {self.folder} can be read."
            raise CommandError(message)
        return histories

    def _read_history(self, fold: str, *, is_wanted: bool) -> History | None:
        try:
            return read_history(self.folder / f"fold_{fold}")
        except HistoryError as error:
            if is_wanted:
                raise
            print(f"Fold {fold} is left out: {error}")
            return None

    def write(self, output: Path, wanted: list[str] | None) -> None:
        """Write the page.

        Args:
            output: HTML file.
            wanted: Folds to show; None: all that there are.
        """
        histories = self.read_histories(wanted)
        trainer, plans, configuration = self.folder.name.split("__")
        results, no_results = self.find_results(wanted)
        progress = tqdm(histories.items(), desc="report", unit="fold")
        parts = [self.describe_fold(fold, history) for fold, history in progress]
        first = next(iter(histories.values()))
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
            settings=list_settings(first.config),
            versions=list_versions(first),
        )

    def find_results(self, wanted: list[str] | None) -> tuple[Markup | None, str]:
        """Results part of the page, or why there is none."""
        device = self.device if self.compares_warmup else None
        try:
            return render_results(self.folder, self.others, wanted, device), ""
        except ComparisonError as error:
            if self.others or self.compares_warmup:
                raise
            return None, f"There are no results: {error}"

    def describe_fold(self, fold: str, history: History) -> FoldPart:
        """Part of a fold."""
        mined = read_rounds(self.folder / f"fold_{fold}")
        notes, pictures, legend = [], {}, []
        if history.num_epochs_done < history.num_epochs:
            done = f"{history.num_epochs_done} of {history.num_epochs} epochs"
            notes.append(
                f"Only {done} are in {history.checkpoint.name}: the training is not finished, or "
                "its final checkpoint was deleted."
            )
        if mined:
            try:
                painter = self._open_painter(fold, history)
                for each in (mined[0], *mined[1:][-1:]):  # the first and the last round
                    pictures[each.folder] = list(painter.paint(each))
                legend = name_colours(painter.model)
            except (ModelError, InputError, StoreError, OSError, RuntimeError) as error:
                notes.append(f"There are no pictures of pairs: {error}")
        elif history.has_preferences:
            notes.append("No round is in the folder preferences: not mined yet, or deleted.")
        rounds = [
            describe_round(each, history.num_dimensions, pictures.get(each.folder, []))
            for each in mined
        ]
        return describe_fold(fold, history, rounds, notes, legend)

    def _open_painter(self, fold: str, history: History) -> PairPainter:
        model = open_model(self.folder, fold, history.checkpoint.name, self.device)
        return PairPainter(model, open_cases(model).training, self.device)
