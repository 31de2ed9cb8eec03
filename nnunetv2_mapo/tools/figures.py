"""Figures of pages: learning curves, candidates of a round, cases of two methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunetv2_mapo.method.progress import Panel, draw_panel
from nnunetv2_mapo.method.schedule import Stage
from nnunetv2_mapo.support.pictures import own_style

_SIZE = (5.2, 3.1)  # inches: on a phone the text is about as large as the page's
_FILL = "#56b4e9"
_MARK = "#d55e00"
_BETTER = "#0072b2"


@own_style()
def draw_curves(
    panel: Panel, logged: Mapping[str, Sequence[Any]], stages: Sequence[Stage]
) -> Figure:
    """Logged values over the epochs, the rounds shaded; arguments as of `draw_panel`."""
    figure, axis = _make_figure()
    draw_panel(axis, panel, logged, stages)
    axis.set_xlabel("epoch")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return figure


@own_style()
def draw_dice_of_candidates(
    dice: NDArray[np.float64], name: str, values: Sequence[float]
) -> Figure:
    """Dice of the candidates of every training sample as box plots, one of each candidate.

    Args:
        dice: Shape `(samples, K)`.
        name: What the candidates differ in, such as the dropout rate.
        values: Dropout rate (or whatever `name` says) of each of the K candidates; the boxes are
            in its order.
    """
    order = np.argsort(values)
    figure, axis = _make_figure()
    axis.boxplot(
        dice[:, order],
        patch_artist=True,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "grey"},
        medianprops={"color": _MARK, "linewidth": 1.5},
        boxprops={"facecolor": _FILL, "alpha": 0.6},
    )
    ticks = [f"{values[place]:g}" for place in order]
    axis.set_xticks(range(1, len(ticks) + 1), ticks, fontsize="small")
    axis.set(xlabel=name, ylabel="Dice of the candidate")
    return figure


@own_style()
def draw_paired_dots(
    values: Sequence[tuple[float, float]],
    gains: Sequence[float],
    names: tuple[str, str],
    title: str,
) -> Figure:
    """Both values of each case as two dots with a line, coloured by which is better.

    Args:
        values: Of the baseline and of the method, for each case.
        gains: Above 0 where the method is better, below 0 where it is worse.
        names: Of the baseline and the method.
        title: Of the values' axis.
    """
    figure, axis = _make_figure()
    outcomes = (("better", _BETTER, "-"), ("worse", _MARK, "--"), ("equal", "grey", ":"))
    for (name, colour, style), sign in zip(outcomes, (1, -1, 0), strict=True):
        lines = [pair for pair, gain in zip(values, gains, strict=True) if np.sign(gain) == sign]
        if not lines:
            continue
        # One artist of each kind: one for each case takes seconds to draw.
        segments = [((0, before), (1, after)) for before, after in lines]
        axis.add_collection(
            LineCollection(
                segments, colors=colour, linestyles=style, linewidths=0.9, alpha=0.7,
                label=f"{name} in {len(lines)}",
            )
        )  # fmt: skip
        axis.scatter([0, 1] * len(lines), np.ravel(lines), s=9, color=colour, alpha=0.7)
    axis.set_xticks((0, 1), names)
    axis.set(xlim=(-0.3, 1.3), ylabel=title)
    if values:
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def _make_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
