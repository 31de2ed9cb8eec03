"""The report of a training: what came out, how it went, what mining found.

What a page needs is gathered here; how it is shown is in `templates/report.html`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.progress import PANELS, Panel
from nnunetv2_mapo.method.store import MinedRound, StoreError, read_rounds
from nnunetv2_mapo.method.summary import summarize_stored
from nnunetv2_mapo.support.errors import CommandError, InputError
from nnunetv2_mapo.support.files import WriteError
from nnunetv2_mapo.support.table import format_duration, wrap
from nnunetv2_mapo.tools.compare import ComparisonError
from nnunetv2_mapo.tools.figures import draw_curves, draw_dice_of_candidates
from nnunetv2_mapo.tools.history import (
    History,
    HistoryError,
    has_no_pairs,
    read_history,
)
from nnunetv2_mapo.tools.models import ModelError, open_model
from nnunetv2_mapo.tools.outcome import Facts, find_outcome
from nnunetv2_mapo.tools.page import write_page
from nnunetv2_mapo.tools.pair_pictures import PairPictures, name_colours, paint_pairs
from nnunetv2_mapo.tools.trainers import open_fold

_STOCK_PANELS = (
    Panel("nnU-Net's loss", {"train_losses": "training", "val_losses": "validation"}),
    Panel("pseudo Dice", {"mean_fg_dice": "of the epoch", "ema_fg_dice": "moving average"}),
)
_NO_PAIRS = (
    "No round had a pair, so this training is a control: it cannot show what preferences do. "
    "nnUNetv2_mapo preview says at which settings there are pairs."
)


class RoundPart(NamedTuple):
    """What mining found in a round, and pictures of some of its pairs."""

    number: int
    facts: Facts
    dice_of_candidates: Figure
    pairs: list[PairPictures]


class FoldPart(NamedTuple):
    """What the report says of a fold.

    Attributes:
        history: Its training.
        facts: What the training cost and reached.
        curves: Learning curves by their panels' labels.
        rounds: One part of each round; empty without preferences.
        alarm: That there was no pair to learn from; empty if there was.
        notes: What is missing, and why.
        legend: Name and colour of each class in the pictures.
    """

    history: History
    facts: Facts
    curves: dict[str, Figure]
    rounds: list[RoundPart]
    alarm: str
    notes: list[str]
    legend: list[tuple[str, str]]


def run_report(arguments: argparse.Namespace) -> None:
    """Write the report of a model from the parsed command line.

    Raises:
        CommandError: Something is missing or damaged.
    """
    folder = arguments.model
    output = (arguments.output or folder / "report.html").expanduser().absolute()
    others = [other.expanduser().resolve() for other in arguments.compare]
    folds = arguments.folds and [str(fold) for fold in arguments.folds]
    histories, defaults = read_histories(folder, folds), MAPOConfig().to_dict()
    try:
        outcome = find_outcome(folder, others, folds, histories)
        trainer, plans, configuration = folder.name.split("__")
        write_page(
            output,
            "report.html",
            trainer=trainer,
            dataset=folder.parent.name,
            configuration=configuration,
            plans=plans,
            date=time.strftime("%Y-%m-%d"),
            folder=str(folder),
            outcome=outcome,
            folds=[describe_fold(each) for each in tqdm(histories, desc="report", unit="fold")],
            settings=[
                (name, value, defaults.get(name))
                for name, value in (histories[0].config or {}).items()
            ],
        )
    except (ComparisonError, StoreError, WriteError) as error:
        raise CommandError(str(error)) from error
    for name, value in outcome.tiles:
        print(wrap(f"{name}: {value}"))
    print(f"Written: {output}")


def read_histories(folder: Path, wanted: Sequence[str] | None) -> list[History]:
    """Trainings of the folds to show; folds that cannot be read are named and left out.

    Args:
        folder: Model folder.
        wanted: Folds that must be shown; None: all that there are.

    Raises:
        CommandError: There is none that can be read, or not a wanted one.
    """
    paths = sorted(path for path in folder.glob("fold_*") if path.is_dir())
    found = [path.name.removeprefix("fold_") for path in paths]
    if not found or folder.name.count("__") != 2:
        message = (
            f"{folder} is not the folder of a model: it is named "
            "nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION and has fold_0 or others."
        )
        raise CommandError(message)
    must_read = wanted is not None or len(found) == 1
    read = [_read_fold(folder / f"fold_{fold}", must_read=must_read) for fold in wanted or found]
    histories = [history for history in read if history is not None]
    if not histories:
        message = f"None of the folds {', '.join(found)} of {folder} can be read."
        raise CommandError(message)
    return histories


def _read_fold(path: Path, *, must_read: bool) -> History | None:
    try:
        return read_history(path)
    except HistoryError as error:
        if must_read:
            raise
        print(f"{path.name} is left out: {error}")
        return None


def describe_fold(history: History) -> FoldPart:
    """Part of a fold, from its checkpoint, its mined rounds and their pairs.

    Raises:
        StoreError: The manifest of a round is damaged.
    """
    rounds = read_rounds(history.checkpoint.parent)
    notes, legend = [], []
    pictures: dict[Path, list[PairPictures]] = {}
    if history.num_epochs_done < history.num_epochs:
        done = f"{history.num_epochs_done} of {history.num_epochs} epochs"
        notes.append(
            f"Only {done} are in {history.checkpoint.name}: the training is not finished, or "
            "its final checkpoint was deleted."
        )
    if history.choices:
        notes.append(describe_choices(history.choices))
    elif history.has_preferences and not rounds:
        notes.append("No round is in the folder preferences: not mined yet, or deleted.")
    if rounds:
        folder, checkpoint = history.checkpoint.parents[1], history.checkpoint.name
        try:
            model = open_model(folder, history.fold, checkpoint, torch.device("cpu"))
            dataset, legend = open_fold(model).training, name_colours(model.dataset_json["labels"])
            for mined in (rounds[0], *rounds[1:][-1:]):  # the first and the last one
                pictures[mined.folder] = paint_pairs(model, dataset, mined)
        except (ModelError, InputError, StoreError, FileNotFoundError) as error:
            notes.append(f"There are no pictures of pairs: {error}")
    panels = [*_STOCK_PANELS, *(PANELS if history.has_preferences else ())]
    return FoldPart(
        history,
        _list_facts(history),
        {panel.label: draw_curves(panel, history.logged, history.stages) for panel in panels},
        [
            describe_round(mined, history.num_dimensions, pictures.get(mined.folder, []))
            for mined in rounds
        ],
        _NO_PAIRS if has_no_pairs([history]) else "",
        notes,
        legend,
    )


def describe_choices(choices: Mapping[str, Any]) -> str:
    """What a training learnt from instead of mined pairs, in a sentence."""
    learnt = {
        "preferences": "preferences between candidates",
        "chosen": "chosen candidates as labels",
        "pseudo-label": "plain predictions as labels, whatever was answered",
    }[choices["use"]]
    return (
        f"No pairs were mined: from {choices['num_images']} images without outlines and "
        f"{choices['num_answers']} answers of experts in {choices['folder']} it learnt {learnt}."
    )


def _list_facts(history: History) -> Facts:
    average = history.logged["ema_fg_dice"]
    facts = [
        ("epochs", str(history.num_epochs_done)),
        ("training", format_duration(history.training_s)),
        ("best moving average of the pseudo Dice", f"{np.nanmax(average):.3f}"),
    ]
    if history.has_preferences:
        warmup_end = history.stages[0].end_epoch
        facts.insert(1, ("of them warm-up", str(warmup_end)))
        facts.append(("the same of the warm-up", f"{np.nanmax(average[:warmup_end]):.3f}"))
        facts.append(("mining", format_duration(history.mining_s)))
    return facts


def describe_round(mined: MinedRound, num_dimensions: int, pairs: list[PairPictures]) -> RoundPart:
    """Part of a round from its manifest, with pictures of some of its pairs."""
    summary = summarize_stored(mined)
    facts = [
        ("pairs", f"{summary.num_pairs} of {summary.num_samples}"),
        ("Dice of the plain prediction", f"{summary.dice_plain:.3f}"),
    ]
    if summary.num_parts:
        share = summary.num_preferred / summary.num_parts
        facts.append(("parts", f"{summary.num_parts}, {share:.0%} of them preferred"))
    if summary.num_pairs:
        facts += [
            ("Dice of chosen", f"{summary.dice_chosen:.3f}"),
            ("Dice of rejected", f"{summary.dice_rejected:.3f}"),
            ("disagreement", f"{summary.disagreement:.1%}"),
        ]
    if math.isfinite(summary.score_plain):
        scores = summary.score_plain, summary.score_chosen, summary.score_rejected
        text = ", ".join(f"{score:.3f}" for score in scores)
        facts.append((f"{summary.ranked_by} of the plain prediction, chosen, rejected", text))
    label, _, values = mined.candidates(num_dimensions)
    dice = np.array([record.dice for records in mined.cases.values() for record in records])
    figure = draw_dice_of_candidates(dice, label, values)
    return RoundPart(mined.origin["round"], facts, figure, pairs)
