"""Values that MAPO logs each epoch, and their picture `progress_mapo.png`."""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd

from nnunetv2_mapo.method.loss import STEP_KEYS
from nnunetv2_mapo.method.rounds import Ranks
from nnunetv2_mapo.method.schedule import Stage
from nnunetv2_mapo.method.summary import RoundSummary
from nnunetv2_mapo.support.files import write_atomically
from nnunetv2_mapo.support.pictures import own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MINING_KEYS = {  # of a round's summary
    f"mining/{name.removeprefix('num_')}": name
    for name in (
        "num_pairs", "num_samples", "dice_plain", "dice_chosen", "dice_rejected", "disagreement"
    )
}  # fmt: skip
# the metric on fixed validation patches, and its moving average, with `best_by="metric"`
METRIC, METRIC_EMA = VALIDATION_KEYS = ("validation/metric", "validation/metric_ema")
_EMA = 0.9  # nnU-Net's, of its pseudo Dice
PLOT = "progress_mapo.png"
_LATEST = 5  # epochs by which the time of those to come is estimated
_SHADE = "#0b64b0"  # of a round


class Panel(NamedTuple):
    """Logged values that are drawn together: label of the axis, and words for each key."""

    label: str
    curves: Mapping[str, str]


PANELS = (
    Panel("loss", {"loss/supervised": "nnU-Net's loss", "loss/dpo": "preference loss"}),
    Panel(
        "reward",
        {"rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin"},
    ),
    Panel(
        "Dice",
        {
            "mean_fg_dice": "pseudo Dice",
            "mining/dice_plain": "plain prediction",
            "mining/dice_chosen": "chosen",
            "mining/dice_rejected": "rejected",
        },
    ),
    Panel(
        "share",
        {"rewards/accuracies": "pairs ranked right", "mining/disagreement": "voxels that differ"},
    ),
)


def register_keys(logged: dict[str, list[Any]], num_epochs_done: int) -> None:
    """Make nnU-Net's local logger know our keys, with NaN for the epochs that are done already."""
    for key in (*STEP_KEYS, *MINING_KEYS, *VALIDATION_KEYS):
        values = logged.setdefault(key, [])
        values.extend([math.nan] * (num_epochs_done - len(values)))


def step_means(outputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each value over the steps of an epoch, of all ranks, in which it is defined, or NaN.

    A step's output is what the training step returned, with `STEP_KEYS`.
    """
    steps = [[output[key] for key in STEP_KEYS] for output in outputs]
    steps = [step for rank in Ranks.find().gather(steps) for step in rank]
    values = pd.DataFrame(steps, columns=STEP_KEYS, dtype=float)
    means: dict[str, float] = values.where(np.isfinite(values)).mean().to_dict()
    return means


def round_values(summary: RoundSummary | None) -> dict[str, float]:
    """Values of the current round under the keys `mining/…`; NaN in the warm-up."""
    return {
        key: math.nan if summary is None else float(getattr(summary, name))
        for key, name in MINING_KEYS.items()
    }


def log_metric(logger: Any, value: float, epoch: int) -> None:
    """Log the metric of an epoch, NaN if it was not measured, and its moving average."""
    earlier = logger.get_value(METRIC_EMA, step=None)
    average = earlier[epoch - 1] if epoch else math.nan
    logger.log(METRIC, value, epoch)
    is_first = math.isnan(average)
    logger.log(METRIC_EMA, value if is_first else _EMA * average + (1 - _EMA) * value, epoch)


@contextmanager
def best_by_metric(trainer: Any) -> Iterator[None]:
    """Let nnU-Net take the metric for its pseudo Dice where it asks which epoch is the best."""
    logger = trainer.logger
    get_value = logger.get_value
    averages = logger.get_value(METRIC_EMA, step=None)
    if np.isfinite(averages).sum() == 1:  # the first epoch: what was best before was another thing
        trainer._best_ema = None

    def get(key: str, step: Any) -> Any:
        return get_value(METRIC_EMA if key == "ema_fg_dice" else key, step)

    with patch.object(logger, "get_value", get):
        yield


class MinedPairs(NamedTuple):
    """Pairs of a round, and samples that they were looked for in; NaN where that was not logged."""

    num_pairs: float
    num_samples: float


def find_pairs(logged: Mapping[str, Sequence[Any]], stages: Sequence[Stage]) -> list[MinedPairs]:
    """What was mined in each round that an epoch is logged of."""
    keys = ("mining/pairs", "mining/samples")
    return [
        MinedPairs(*(logged[key][stage.first_epoch] if key in logged else math.nan for key in keys))
        for stage in stages[1:]
        if stage.first_epoch < len(logged["mean_fg_dice"])
    ]


def are_none(rounds: Sequence[MinedPairs]) -> bool:
    """Whether rounds were mined, and nothing was found in any of them."""
    return bool(rounds) and all(mined.num_pairs == 0 for mined in rounds)


def say_next(trainer: Any, *, has_pairs: bool) -> str:
    """What a finished training is, and the command that comes next.

    A comparison with the base trainer names the control where that is another one.
    """
    model = Path(trainer.output_folder_base)
    names = type(trainer).__name__, *model.name.split("__")[1:]
    if has_pairs:
        base = "__".join([names[0].partition("_MAPO")[0], *names[1:]])
        control = str(model.with_name(base)) if base != model.name else "CONTROL_FOLDER"
        compare = shlex.join(["nnUNetv2_mapo", "compare", control, str(model)])
        return f"did preferences help? Once the control is trained as well: {compare}"
    preview = shlex.join(
        ["nnUNetv2_mapo", "preview", "-d", trainer.plans_manager.dataset_name,
         "-c", trainer.configuration_name, "-f", str(trainer.fold), "-tr", names[0],
         "-p", trainer.plans_manager.plans_name]
    )  # fmt: skip
    return (
        "WARNING: no round had a pair, so this training is a CONTROL: it cannot show what "
        f"preferences do. To see at which settings there are pairs: {preview}"
    )


def estimate_left(
    logged: Mapping[str, Sequence[Any]], stages: Sequence[Stage], mining_s: float
) -> float:
    """Seconds that a training still takes, but its final validation.

    Epochs to come take as long as the latest ones, and every round to come is mined as long as the
    latest. In the warm-up neither mining nor the longer epochs of a round are known: it is a lower
    bound there.

    Args:
        logged: What nnU-Net's logger holds; at least one epoch is done.
        stages: Of the whole training.
        mining_s: Duration of the latest mining in seconds; 0 if there was none.
    """
    starts, ends = logged["epoch_start_timestamps"], logged["epoch_end_timestamps"]
    num_done = len(ends)
    latest = [end - start for start, end in zip(starts, ends, strict=False)][-_LATEST:]
    num_rounds = sum(stage.round > 0 and stage.first_epoch >= num_done for stage in stages)
    epochs_s = (stages[-1].end_epoch - num_done) * float(np.median(latest))
    return epochs_s + num_rounds * mining_s


@own_style()
def plot_progress(folder: Path, logged: Mapping[str, Sequence[Any]], stages: list[Stage]) -> None:
    """Draw losses, rewards, pairs and Dice over the epochs, the stages shaded, into a folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 12))
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 1, sharex=True)
    # A layout engine would draw everything twice, in every epoch.
    figure.subplots_adjust(left=0.08, right=0.79, bottom=0.04, top=0.95, hspace=0.08)
    for axis, panel in zip(axes, PANELS, strict=True):
        draw_panel(axis, panel, logged, stages)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    found = find_pairs(logged, stages)
    for stage in stages:
        name = f"round {stage.round}" if stage.round else "warm-up"
        if 0 < stage.round <= len(found):
            name += f"\n{found[stage.round - 1].num_pairs:.0f} pairs"
        middle = (stage.first_epoch + stage.end_epoch - 1) / 2
        axes[0].text(middle, 1.02, name, transform=axes[0].get_xaxis_transform(), ha="center")
    axes[-1].set_xlabel("epoch")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=90)
    write_atomically(folder / PLOT, picture.getvalue())


def draw_panel(
    axis: Axes, panel: Panel, logged: Mapping[str, Sequence[Any]], stages: Sequence[Stage]
) -> None:
    """Draw the values of a panel over the epochs, the rounds shaded.

    Keys that are not logged, as by a stock trainer, are left out.
    """
    for stage in stages[1:]:
        opacity = (0.16, 0.08)[stage.round % 2]  # transparent: the page behind may be dark
        axis.axvspan(stage.first_epoch - 0.5, stage.end_epoch - 0.5, color=_SHADE, alpha=opacity,
                     linewidth=0, zorder=0)  # fmt: skip
    axis.set_xlim(-0.5, stages[-1].end_epoch - 0.5)
    for key, words in panel.curves.items():
        if key in logged:
            axis.plot(logged[key], label=words, marker=".", linewidth=1.2)
    if panel.label == "reward":
        axis.axhline(0, color="grey", linewidth=0.6)
    axis.set_ylabel(panel.label)
