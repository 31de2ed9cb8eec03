"""A picture of the pairs that the demo found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nnunetv2_mapo.method.store import SampleRecord, read_rounds
from nnunetv2_mapo.support.pictures import own_style
from nnunetv2_mapo.tools.demo.phantom import ENDING, LABELS, read_image

_COLOURS = {"organ": "#56b4e9", "lesion": "#e69f00"}  # distinct for the colour-blind too
TITLES = ("training case", "ground truth", "chosen", "rejected")


def find_largest_gaps(cases: Mapping[str, Sequence[SampleRecord]], num_cases: int) -> list[str]:
    """Cases whose chosen and rejected differ most in Dice, the largest gap first."""
    pairs = {case: record for case, (record,) in cases.items() if record.has_pair}
    gaps = {case: pair.dice_chosen - pair.dice_rejected for case, pair in pairs.items()}
    return sorted(gaps, key=lambda case: gaps[case], reverse=True)[:num_cases]


@own_style()
def draw_pairs(path: Path, raw: Path, fold: Path, cases: Sequence[str]) -> None:
    """Draw `TITLES` of training cases in round 1, in the slice in which the pair differs most.

    Args:
        path: PNG file.
        raw: The data set in nnU-Net's raw format.
        fold: nnU-Net's folder of the fold.
        cases: Case identifiers, at least one.
    """
    figure = Figure(figsize=(10, 2.15 * len(cases) + 0.5), layout="constrained")
    axes = figure.subplots(len(cases), len(TITLES), squeeze=False)
    mined = read_rounds(fold)[0]
    for row, case in zip(axes, cases, strict=True):
        _, chosen, rejected, *_ = np.asarray(mined.open_stack(case)[:])
        plane = int((chosen != rejected).sum((1, 2)).argmax())
        image = read_image(raw / "imagesTr" / f"{case}_0000{ENDING}")[plane]
        truth = read_image(raw / "labelsTr" / f"{case}{ENDING}")[plane]
        (record,) = mined.cases[case]
        panels = (
            (None, case),
            (truth, ""),
            (chosen[plane], f"Dice {record.dice_chosen:.2f}"),
            (rejected[plane], f"Dice {record.dice_rejected:.2f}"),
        )
        for axis, (segmentation, caption) in zip(row, panels, strict=True):
            axis.imshow(image, cmap="gray")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(caption, fontsize=9)
            axis.spines[:].set_visible(False)
            if segmentation is not None:
                _draw_segmentation(axis, segmentation)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=11)
    handles = [Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def _draw_segmentation(axis: Axes, segmentation: NDArray[Any]) -> None:
    for name, colour in _COLOURS.items():
        mask = segmentation == LABELS[name]
        if mask.any():
            axis.contourf(mask, levels=[0.5, 1.5], colors=colour, alpha=0.45)
            axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.4)
