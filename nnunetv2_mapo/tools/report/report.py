"""The report of a training: what it was, how it went, what mining found, what came out."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.progress import PANELS, Panel
from nnunetv2_mapo.method.rounds import summarize_stored
from nnunetv2_mapo.method.store import MinedRound
from nnunetv2_mapo.tools.figures import (
    draw_curves,
    draw_dice_of_candidates,
    draw_disagreement,
    draw_gaps,
)
from nnunetv2_mapo.tools.history import History, format_duration
from nnunetv2_mapo.tools.page import figure_to_svg, image_to_uri
from nnunetv2_mapo.tools.report.pair_pictures import PairPictures

_STOCK_PANELS = (
    Panel("nnU-Net's loss", ("train_losses", "val_losses")),
    Panel("pseudo Dice", ("mean_fg_dice", "ema_fg_dice")),
)
_CAPTIONS = {
    "nnU-Net's loss": "nnU-Net's loss of training and validation patches. In the preference stage "
    "the training loss is the whole one: λ · nnU-Net's loss + DPO.",
    "pseudo Dice": "Mean foreground Dice of validation patches in each epoch, and nnU-Net's moving "
    "average, by which it keeps the best checkpoint.",
    "loss": "The two parts of the loss. DPO starts near ln 2 = 0.69, with another loss_type "
    "elsewhere: lower means that the policy prefers chosen to rejected by more than the reference "
    "does.",
    "reward": "Reward: how much more likely the policy makes a segmentation than the reference "
    "does, in units of β. The margin is chosen minus rejected and should rise above 0.",
    "Dice": "Pseudo Dice, and the mean Dice of the plain prediction, the chosen and the rejected "
    "candidates as each round found them. Once the pseudo Dice is far above the chosen ones, they "
    "have nothing left to teach.",
    "share": "Accuracy: share of the pairs with a margin above 0. Disagreement: share of the "
    "voxels in which chosen and rejected differ.",
}


class Plot(NamedTuple):
    """A figure with its caption."""

    svg: Markup
    caption: str


class RoundPart(NamedTuple):
    """What the report says of a round.

    Attributes:
        number: 1 …
        facts: Short numbers, as (name, value).
        plots: Figures.
        pairs: Title, then source and caption of each picture, for each pair.
    """

    number: int
    facts: list[tuple[str, str]]
    plots: list[Plot]
    pairs: list[tuple[str, list[tuple[str, str]]]]


class FoldPart(NamedTuple):
    """What the report says of a fold.

    Attributes:
        fold: Number, or `"all"`.
        has_preferences: Whether it has come to the preference stage.
        facts: Short numbers, as (name, value).
        curves: Learning curves.
        rounds: One part of each round; empty without preferences.
        notes: What is missing, and why.
        legend: Name and colour of each class in the pictures.
    """

    fold: str
    has_preferences: bool
    facts: list[tuple[str, str]]
    curves: list[Plot]
    rounds: list[RoundPart]
    notes: list[str]
    legend: list[tuple[str, str]]


def describe_fold(
    fold: str,
    history: History,
    rounds: list[RoundPart],
    notes: list[str],
    legend: list[tuple[str, str]],
) -> FoldPart:
    """Part of a fold from what its training logged."""
    logged = history.logged
    average = logged["ema_fg_dice"]
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
    panels = [*_STOCK_PANELS, *(PANELS if history.has_preferences else ())]
    curves = [
        Plot(figure_to_svg(draw_curves(panel, logged, history.stages)), _CAPTIONS[panel.label])
        for panel in panels
    ]
    return FoldPart(fold, history.has_preferences, facts, curves, rounds, notes, legend)


def describe_round(
    mined: MinedRound, num_dimensions: int, pairs: Iterable[PairPictures]
) -> RoundPart:
    """Part of a round from its manifest.

    Args:
        mined: The round.
        num_dimensions: Of the configuration, 2 or 3.
        pairs: Pictures of some of its pairs.
    """
    summary = summarize_stored(mined)
    samples = [record for records in mined.cases.values() for record in records]
    shares = [r.num_disagreeing / r.num_voxels for r in samples if r.has_pair]
    dice = np.array([record.dice for record in samples])
    label, _, values = mined.candidates(num_dimensions)
    facts = [
        ("pairs", f"{summary.num_pairs} of {summary.num_samples}"),
        ("Dice of the plain prediction", f"{summary.dice_plain:.3f}"),
    ]
    plots = [
        Plot(
            figure_to_svg(draw_dice_of_candidates(dice, label, values)),
            f"Dice of each training sample's candidate for each {label}: box from quartile to "
            "quartile, line at the median, whiskers to 1.5 times the box, points beyond.",
        ),
    ]
    if summary.num_parts:
        share = summary.num_preferred / summary.num_parts
        facts.append(("parts", f"{summary.num_parts}, {share:.0%} of them preferred"))
    else:
        caption = "Gap between best and worst candidate of each sample. Right of τ it is a pair."
        plots.append(Plot(figure_to_svg(draw_gaps(summary.gaps, summary.tau)), caption))
    if shares:
        facts += [
            ("Dice of chosen", f"{summary.dice_chosen:.3f}"),
            ("Dice of rejected", f"{summary.dice_rejected:.3f}"),
            ("disagreement", f"{summary.disagreement:.1%}"),
        ]
        caption = "Share of the voxels of each pair in which chosen and rejected differ."
        plots.append(Plot(figure_to_svg(draw_disagreement(shares)), caption))
    pictures = [
        (title, [(image_to_uri(picture.pixels), picture.caption) for picture in row])
        for title, row in pairs
    ]
    return RoundPart(mined.origin["round"], facts, plots, pictures)


def list_settings(settings: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """Name, value and shipped default of every setting; empty for a training without MAPO."""
    defaults = MAPOConfig().to_dict()
    return [
        (name, format_value(value), format_value(defaults.get(name)))
        for name, value in (settings or {}).items()
    ]


def list_versions(history: History) -> list[tuple[str, str]]:
    """What the training ran on, and versions of what made the report."""
    packages = ("nnunetv2-mapo", "nnunetv2", "torch", "monai", "numpy")
    return [
        *((f"{name}, training", value) for name, value in history.environment.items()),
        *((f"{name}, this page", _version(name)) for name in packages),
        ("Python, this page", platform.python_version()),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # it is imported from a checkout
        return "not installed"


def format_value(value: Any) -> str:
    """Setting as text."""
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
