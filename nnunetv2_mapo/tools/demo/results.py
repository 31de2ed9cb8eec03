"""What the demo found: Dice of the test cases, pairs of each round, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunetv2_mapo.method.rounds import RoundSummary, summarize_stored
from nnunetv2_mapo.method.store import SampleRecord, read_rounds
from nnunetv2_mapo.support.table import format_table
from nnunetv2_mapo.tools.demo.phantom import LABELS, read_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = {"warmup": "after the warm-up", "final": "final"}
PAIR_COLUMNS = ("training case", "ground truth", "chosen", "rejected", "final prediction")
TEST_COLUMNS = ("test case", "ground truth", "after the warm-up", "final prediction")
_COLOURS = {"organ": "#56b4e9", "lesion": "#e69f00"}  # distinct for the colour-blind too


@dataclass(frozen=True)
class Results:
    """What the demo found.

    Attributes:
        dice: Mean Dice of the test cases by stage (`"warmup"`, `"final"`) and label.
        rounds: Summary of each round's mining.
    """

    dice: dict[str, dict[str, float]]
    rounds: list[RoundSummary]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"dice": self.dice, "rounds": [asdict(summary) for summary in self.rounds]}

    def __str__(self) -> str:
        labels = list(self.dice["final"])
        scores = [
            [STAGES[stage], *(f"{values[label]:.3f}" for label in labels)]
            for stage, values in self.dice.items()
        ]
        pairs = [
            [
                str(number),
                f"{summary.num_pairs} of {summary.num_samples}",
                f"{summary.dice_chosen:.3f}",
                f"{summary.dice_rejected:.3f}",
                f"{summary.disagreement:.1%}",
            ]
            for number, summary in enumerate(self.rounds, 1)
        ]
        return (
            f"{format_table(['Dice of the test cases', *labels], scores)}\n\n"
            + format_table(["round", "pairs", "Dice chosen", "Dice rejected", "differing"], pairs)
            + "\n\nThe final weights also had more epochs than the warm-up's: what preferences add"
            "\nis the difference to nnUNetTrainer_MAPO_NoPreference on your own data."
        )


def read_results(fold: Path, summaries: dict[str, Path]) -> Results:
    """Results of a training.

    Args:
        fold: nnU-Net's folder of the fold.
        summaries: `summary.json` of nnU-Net's evaluation for each stage.
    """
    dice = {}
    for stage, path in summaries.items():
        content = json.loads(path.read_text())
        dice[stage] = {
            **{
                name: content["mean"][str(label)]["Dice"] for name, label in LABELS.items() if label
            },
            "mean": content["foreground_mean"]["Dice"],
        }
    return Results(dice, [summarize_stored(mined) for mined in read_rounds(fold)])


def find_largest_gaps(cases: dict[str, list[SampleRecord]], num_cases: int) -> list[str]:
    """Cases whose chosen and rejected candidates differ most in Dice, the largest gap first."""
    gaps = {
        case: max(
            (each.dice_chosen - each.dice_rejected for each in records if each.has_pair),
            default=0.0,
        )
        for case, records in cases.items()
    }
    ordered = sorted(gaps, key=lambda case: gaps[case], reverse=True)
    return [case for case in ordered if gaps[case] > 0][:num_cases]


class Panel(NamedTuple):
    """One image of a picture, with the contours of its segmentation.

    Attributes:
        image: Shape `(y, x)`.
        segmentation: Values of `LABELS`, the same shape; None: the image alone.
        caption: Below the panel.
    """

    image: NDArray[Any]
    segmentation: NDArray[Any] | None
    caption: str = ""


def pair_panels(raw: Path, fold: Path, predictions: Path, case: str, ending: str) -> list[Panel]:
    """Image, ground truth, chosen and rejected of round 1, final prediction of a training case.

    Args:
        raw: The data set in nnU-Net's raw format.
        fold: nnU-Net's folder of the fold.
        predictions: Final predictions of training cases.
        case: Case identifier.
        ending: File ending of the data set.
    """
    mined = read_rounds(fold)[0]
    record = mined.cases[case][0]
    _, chosen, rejected, *_ = np.asarray(mined.open_stack(case)[:])
    image = read_image(raw / "imagesTr" / f"{case}_0000{ending}")
    truth = read_image(raw / "labelsTr" / f"{case}{ending}")
    final = read_image(predictions / f"{case}{ending}")
    # 3D: the slice in which they differ most; 2D has only one.
    plane = int((chosen != rejected).sum((1, 2)).argmax())
    volumes = [volume.reshape(chosen.shape)[plane] for volume in (image, truth, final)]
    return [
        Panel(volumes[0], None, case),
        Panel(volumes[0], volumes[1]),
        Panel(volumes[0], chosen[plane], f"Dice {record.dice_chosen:.2f}"),
        Panel(volumes[0], rejected[plane], f"Dice {record.dice_rejected:.2f}"),
        Panel(volumes[0], volumes[2]),
    ]


def test_panels(raw: Path, predictions: Path, case: str, ending: str) -> list[Panel]:
    """Image, ground truth, prediction after the warm-up and final prediction of a test case."""
    image = read_image(raw / "imagesTs" / f"{case}_0000{ending}")
    truth = read_image(raw / "labelsTs" / f"{case}{ending}")
    segmentations = [truth, *(read_image(predictions / s / f"{case}{ending}") for s in STAGES)]
    if image.ndim == 3:  # the slice with most of the organ
        plane = int((truth > 0).sum((1, 2)).argmax())
        image, segmentations = image[plane], [volume[plane] for volume in segmentations]
    return [Panel(image, None, case), *(Panel(image, volume) for volume in segmentations)]


def draw(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Panel]]) -> None:
    """Write a picture: one row a case, one column a segmentation.

    Args:
        path: PNG file.
        columns: Title of each column.
        rows: Panels of each row, as many as columns.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    size = (2 * len(columns), 2.15 * len(rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, panels in zip(axes, rows, strict=True):
        for axis, panel in zip(row, panels, strict=True):
            _draw_panel(axis, panel)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=11)
    handles = [Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def _draw_panel(axis: Axes, panel: Panel) -> None:
    axis.imshow(panel.image, cmap="gray")
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(panel.caption, fontsize=9)
    for side in axis.spines.values():
        side.set_visible(False)
    for name, colour in _COLOURS.items():
        if panel.segmentation is not None and (panel.segmentation == LABELS[name]).any():
            mask = panel.segmentation == LABELS[name]
            axis.contourf(mask, levels=[0.5, 1.5], colors=colour, alpha=0.45)
            axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.4)
