"""What a preview found out, as text, as a file and as a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.support.files import write_atomically
from nnunetv2_mapo.support.table import format_table
from nnunetv2_mapo.tools.models import TrainedModel
from nnunetv2_mapo.tools.preview.preview import (
    ENOUGH_PAIRS,
    Preview,
    Settings,
    format_trainer,
    recommend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TAUS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # columns of the table
PICTURE, NUMBERS = "preview.png", "preview.json"
_COLOURS = {"default": "#0072b2", "recommended": "#d55e00"}  # distinct for the colour-blind too
_STYLES = {"default": "--", "recommended": "-"}
_FEW_SAMPLES = 20  # a share of fewer is uncertain by more than ten percent points
_HARDLY_LEARNT = 0.1  # plain Dice below which candidates say nothing about a finished warm-up


class SampleView(NamedTuple):
    """What is seen of one training sample.

    Attributes:
        case: Case identifier.
        number: Of the sample in the case, from 0.
        has_foreground: Whether its ground truth has any.
        dice: Dice of each candidate, shape `(K,)`.
        disagreement: Share of voxels in which each two candidates differ, shape `(K, K)`.
    """

    case: str
    number: int
    has_foreground: bool
    dice: NDArray[np.float64]
    disagreement: NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """Everything that a preview found out.

    Attributes:
        model: The model.
        checkpoint: File name of its checkpoint.
        num_cases: Training cases that were looked at.
        num_training: Training cases that there are.
        rates: Dropout rates that were looked at.
        samples: The cases' training samples; at least one has foreground.
        default: The paper's rates, and the usual τ of `pair="case"`.
    """

    model: TrainedModel
    checkpoint: str
    num_cases: int
    num_training: int
    rates: tuple[float, ...]
    samples: list[SampleView]
    default: Settings

    @cached_property
    def preview(self) -> Preview:
        """The samples with foreground; a slice without any seldom tells candidates apart."""
        used = [sample for sample in self.samples if sample.has_foreground]
        dice = np.stack([sample.dice for sample in used])
        return Preview(self.rates, dice, np.stack([sample.disagreement for sample in used]))

    @cached_property
    def settings(self) -> dict[str, Settings]:
        """Default and, if they differ, recommended settings by name."""
        knows_dropout = self.model.mapo is not None
        recommended = recommend(self.preview, self.default, knows_dropout=knows_dropout)
        settings = {"default": self.default, "recommended": recommended}
        return settings if recommended != self.default else {"default": self.default}

    def __str__(self) -> str:
        model, num_empty = self.model, len(self.samples) - len(self.preview.dice)
        lines = [
            f"{model.folder.parent.name}, {model.configuration}, fold {model.fold}, "
            f"{model.trainer_name}, {self.checkpoint}",
            f"{self.num_cases} of {self.num_training} training cases: "
            f"{len(self.preview.dice)} samples with foreground",
        ]
        if num_empty:
            lines[-1] += f" ({num_empty} slices without any are left out)"
        tables = [self._dice_table(), "", self._describe_default(), "", self._pair_table()]
        return "\n".join([*lines, "", *tables, *self._advise()])

    def _describe_default(self) -> str:
        """What `nnUNetTrainer_MAPO` would do here."""
        fall = MAPOConfig().rates_dice_fall
        rate = self.preview.rate_at_fall(fall)
        limit = "at least " if rate == self.rates[-1] else "about "
        return (
            f"nnUNetTrainer_MAPO finds its rates itself: here 0 to {limit}{rate:.2g}, where the "
            f"median Dice has lost {fall:.0%}.\nEvery part in which a candidate then differs "
            'is preferred or not. Of pair="case", two whole candidates:'
        )

    def _dice_table(self) -> str:
        lower, median, upper = self.preview.quartiles()
        rows = [
            [f"{rate:g}", f"{m:.3f}", f"{low:.3f} to {up:.3f}", f"{m / max(median[0], 1e-9):.0%}"]
            for rate, low, m, up in zip(self.rates, lower, median, upper, strict=True)
        ]
        return format_table(["dropout rate", "median Dice", "quartiles", "of the plain"], rows)

    def _pair_table(self) -> str:
        taus = sorted({*TAUS, *(settings.tau for settings in self.settings.values())})
        rows = [
            [
                f"{name} (0 to {settings.rates[-1]:g})",
                *(f"{self.preview.share_with_pair(settings._replace(tau=t)):.0%}" for t in taus),
            ]
            for name, settings in self.settings.items()
        ]
        return format_table(["samples with a pair at tau =", *(f"{t:g}" for t in taus)], rows)

    def _advise(self) -> list[str]:
        """What it means and what to do, as lines."""
        lines = [""]
        for name, settings in self.settings.items():
            num_pairs = self.preview.count_pairs(settings)
            line = f"With the {name} settings (rates to {settings.rates[-1]:g}, tau {settings.tau})"
            line += f" {num_pairs} of {len(self.preview.dice)} samples would have a pair"
            share = self.preview.median_disagreement(settings)
            if share is not None:
                line += f"; chosen and rejected differ in {share:.2%} of the voxels (median)"
            lines.append(f"{line}.")
        *_, (name, best) = self.settings.items()
        default = MAPOConfig().granularity
        granularity = self.model.mapo["granularity"] if self.model.mapo else default
        if name == "default" and granularity == default:
            lines.append("Train with nnUNetTrainer_MAPO as it is.")
        else:
            dimensions = len(self.model.configuration_manager.patch_size)
            lines += [
                "",
                f"To train with the {name} ones, save this in a folder that nnUNet_extTrainer "
                "names, and use -tr nnUNetTrainer_MAPO_Previewed:",
                "",
                format_trainer(best, dimensions, granularity),
            ]
        return lines + self._warn(best)

    def _warn(self, settings: Settings) -> list[str]:
        notes = []
        if self.preview.quartiles()[1][0] < _HARDLY_LEARNT:
            notes.append(
                "This network has hardly learnt anything yet, so its candidates say little about "
                "those of a finished warm-up."
            )
        if len(self.preview.dice) < _FEW_SAMPLES and self.num_cases < self.num_training:
            notes.append(
                "These are few samples, so the shares are rough: look at more with --cases."
            )
        if self.preview.share_with_pair(settings) < ENOUGH_PAIRS:
            notes.append(
                "MAPO will have few pairs here: samples without one are trained with nnU-Net's own "
                "loss alone. A shorter warm-up gives more."
            )
        if settings.rates[-1] == self.rates[-1]:
            notes.append(
                "Even the largest rate leaves useful candidates: look at higher ones with --rates."
            )
        if self.model.mapo is None:
            notes.append(
                "This network was trained without MAPO's dropout. A MAPO warm-up makes the network "
                "more robust: its Dice falls later, so expect fewer pairs at the same rates. No "
                "rates below the default are recommended on this network's account; look again at "
                "a checkpoint of the warm-up."
            )
        return [f"Note: {note}" for note in notes]

    def write(self, folder: Path) -> Path:
        """Write all the numbers as JSON; gives the file.

        Raises:
            WriteError: The disk is full, or something else keeps the file from being written.
        """
        content: dict[str, Any] = {
            "model": str(self.model.folder),
            "fold": self.model.fold,
            "checkpoint": self.checkpoint,
            "num_training_cases": self.num_training,
            "rates": self.rates,
            "samples": [
                {
                    "case": sample.case,
                    "number": sample.number,
                    "has_foreground": sample.has_foreground,
                    "dice": [round(dice, 6) for dice in sample.dice.tolist()],
                }
                for sample in self.samples
            ],
            "settings": {
                name: {
                    **settings._asdict(),
                    "num_pairs": self.preview.count_pairs(settings),
                    "num_samples": len(self.preview.dice),
                    "median_disagreement": self.preview.median_disagreement(settings),
                }
                for name, settings in self.settings.items()
            },
        }
        write_atomically(folder / NUMBERS, json.dumps(content, indent=1).encode())
        return folder / NUMBERS


def draw(seen: Seen, folder: Path) -> Path:
    """Draw the Dice over the rate, and the share of samples with a pair over τ; gives the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_dice(left, seen)
    _draw_shares(right, seen)
    model = seen.model
    figure.suptitle(
        f"{model.folder.parent.name}, {model.configuration}, fold {model.fold}: "
        f"{model.trainer_name}, {seen.checkpoint}",
        fontsize=10,
    )
    figure.savefig(folder / PICTURE, dpi=110)
    return folder / PICTURE


def _draw_dice(axis: Axes, seen: Seen) -> None:
    lower, median, upper = seen.preview.quartiles()
    dice = seen.preview.dice
    alpha = max(0.15, min(1, 12 / len(dice)))  # many lines would hide the rest
    lines = axis.plot(seen.rates, dice.T, color="0.5", alpha=alpha, linewidth=0.6, zorder=1)
    lines[0].set_label("each sample")
    axis.fill_between(seen.rates, lower, upper, color="0.3", alpha=0.25, label="quartiles")
    axis.plot(seen.rates, median, color="black", marker=".", label="median")
    for name, settings in seen.settings.items():
        axis.axvline(
            settings.rates[-1], color=_COLOURS[name], linestyle=_STYLES[name],
            label=f"largest {name} rate, {settings.rates[-1]:g}",
        )  # fmt: skip
    axis.set(xlabel="dropout rate", ylabel="Dice", ylim=(0, 1.02), xlim=(0, seen.rates[-1]))
    axis.legend(loc="lower left", fontsize="small")


def _draw_shares(axis: Axes, seen: Seen) -> None:
    taus = np.linspace(0, 0.5, 501)
    for name, settings in seen.settings.items():
        gaps = seen.preview.gaps(settings.rates)
        colour, style = _COLOURS[name], _STYLES[name]
        axis.plot(
            taus, (gaps >= taus[:, None]).mean(1), color=colour, linestyle=style,
            label=f"{name} rates, 0 to {settings.rates[-1]:g}",
        )  # fmt: skip
        axis.plot(
            settings.tau, seen.preview.share_with_pair(settings), "o", color=colour,
            fillstyle="none" if name == "default" else "full", markersize=9,
            label=f"{name} τ, {settings.tau:g}",
        )  # fmt: skip
    axis.axhline(ENOUGH_PAIRS, color="0.6", linewidth=0.8, linestyle=":")
    axis.set(xlabel="τ", ylabel="share of samples with a pair", ylim=(0, 1.02), xlim=(0, 0.5))
    axis.legend(loc="upper right", fontsize="small")
