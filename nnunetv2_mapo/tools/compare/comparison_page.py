"""A comparison as HTML, with a figure of the cases, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from nnunetv2_mapo.tools.compare.comparison import MetricComparison
from nnunetv2_mapo.tools.compare.comparison_text import ComparisonText
from nnunetv2_mapo.tools.compare.methods import Method
from nnunetv2_mapo.tools.figures import draw_paired_dots
from nnunetv2_mapo.tools.page import figure_to_svg, render_part


def render_comparison(text: ComparisonText, comparisons: Sequence[MetricComparison]) -> Markup:
    """HTML of a comparison without the page around it, so that a report can hold it too.

    Args:
        text: What is said.
        comparisons: What it is said of, for the figures.
    """
    baseline, *others = text.methods
    figures = [
        (
            name,
            [
                (_draw(each, baseline, name), f"{each.direction.title}, each case")
                for each in comparisons
            ],
        )
        for name in others
    ]
    return render_part("comparison_body.html", text=text, figures=figures)


def _draw(comparison: MetricComparison, baseline: str, method: str) -> Markup:
    differences = comparison.differences[method].cases
    sign = 1 if comparison.direction.higher_is_better else -1
    values = comparison.values
    figure = draw_paired_dots(
        [(values[baseline][case], values[method][case]) for case in differences],
        [sign * difference for difference in differences.values()],
        (shorten(baseline), shorten(method)),
        comparison.direction.title,
    )
    return figure_to_svg(figure)


def shorten(name: str) -> str:
    """Name for an axis: long ones in two lines, broken at an underscore near the middle."""
    places = [place for place, character in enumerate(name) if character == "_"]
    if len(name) <= 20 or not places:
        return name
    middle = min(places, key=lambda place: abs(place - len(name) / 2))
    return f"{name[:middle]}\n{name[middle:]}"


def comparison_to_dict(
    text: ComparisonText, comparisons: Sequence[MetricComparison], methods: Sequence[Method]
) -> dict[str, Any]:
    """JSON form of a comparison; NaN becomes null."""
    content = {
        "methods": text.methods,
        "conclusion": text.conclusion,
        "verdicts": text.verdicts,
        "metrics": [asdict(each) for each in comparisons],
        "trainings": {
            method.name: {
                fold: history
                and {
                    "epochs": history.num_epochs_done,
                    "training_s": history.training_s,
                    "mining_s": history.mining_s,
                    "starts": history.num_starts,
                }
                for fold, history in method.histories.items()
            }
            for method in methods
        },
        "provenance": methods[0].evaluation.provenance,
    }
    cleaned: dict[str, Any] = _without_nan(content)
    return cleaned


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
