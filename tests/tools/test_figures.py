from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import to_hex

from nnunetv2_mapo.method.progress import PANELS, Panel
from nnunetv2_mapo.method.schedule import Stage
from nnunetv2_mapo.tools.figures import (
    draw_curves,
    draw_dice_of_candidates,
    draw_paired_dots,
)

STAGES = [Stage(0, 0, 2), Stage(1, 2, 4)]


def test_rounds_are_shaded_and_the_warm_up_is_not():
    figure = draw_curves(
        Panel("Dice", {"mean_fg_dice": "pseudo Dice"}), {"mean_fg_dice": [0.1] * 4}, STAGES
    )
    (axis,) = figure.axes
    assert [(patch.get_x(), patch.get_width()) for patch in axis.patches] == [(1.5, 2.0)]
    assert axis.get_xlim() == (-0.5, 3.5)


def test_values_that_a_stock_trainer_lacks_are_left_out():
    figure = draw_curves(PANELS[2], {"mean_fg_dice": [0.1, 0.2]}, STAGES)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["pseudo Dice"]


def test_rewards_have_a_line_at_zero():
    logged = {key: [math.nan, 0.1, 0.2, 0.3] for key in PANELS[1].curves}
    lines = draw_curves(PANELS[1], logged, STAGES).axes[0].lines
    assert list(lines[-1].get_ydata()) == [0, 0]


def test_each_rate_has_a_box_with_its_median():
    dice = np.array([[0.9, 0.5], [0.8, 0.4], [0.7, 0.0]])
    (axis,) = draw_dice_of_candidates(dice, "dropout rate", [0.0, 0.05]).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "0.05"]
    medians = [line.get_ydata()[0] for line in axis.lines if line.get_color() == "#d55e00"]
    assert medians == [0.8, 0.4]


def test_each_case_is_a_line_coloured_by_the_outcome():
    values = [(0.5, 0.75), (0.5, 0.25), (0.75, 1.0)]
    (axis,) = draw_paired_dots(values, [0.25, -0.25, 0.25], ("A", "B"), "Dice").axes
    better, better_dots, worse, worse_dots = axis.collections  # not one artist for each case
    drawn = [[segment.tolist() for segment in each.get_segments()] for each in (better, worse)]
    assert drawn == [[[[0, 0.5], [1, 0.75]], [[0, 0.75], [1, 1.0]]], [[[0, 0.5], [1, 0.25]]]]
    assert [to_hex(each.get_color()[0]) for each in (better, worse)] == ["#0072b2", "#d55e00"]
    assert better_dots.get_offsets().tolist() == [[0, 0.5], [1, 0.75], [0, 0.75], [1, 1.0]]
    assert worse_dots.get_offsets().tolist() == [[0, 0.5], [1, 0.25]]
    low, high = axis.get_ylim()
    assert low < 0.25 < 1.0 < high
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == ["better in 2", "worse in 1"]


def test_no_case_is_an_empty_figure():
    (axis,) = draw_paired_dots([], [], ("A", "B"), "Dice").axes
    assert len(axis.collections) == 0
    assert axis.get_legend() is None
