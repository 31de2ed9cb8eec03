"""Cells of the study in the order in which they are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from .protocol import ALL_LABELLED, FEW_LABELLED

CHOOSING_SEEDS = (0, 1, 2, 3)  # settings are chosen by these
CLAIMING_SEEDS = (4, 5, 6, 7)  # what is said about the method rests on these


class Cell(NamedTuple):
    """One training and its evaluation."""

    regime: str
    dataset: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """As it is written in patterns, such as `short/Kvasir/mapo/3`."""
        return "/".join(map(str, self))


class Block(NamedTuple):
    """Cells of equal priority: seeds outermost, then data sets, then arms."""

    regime: str
    arms: Sequence[str]
    seeds: Sequence[int]
    datasets: Sequence[str] = ALL_LABELLED

    def cells(self) -> Iterator[Cell]:
        """In their order."""
        for seed in self.seeds:
            for dataset in self.datasets:
                for arm in self.arms:
                    yield Cell(self.regime, dataset, arm, seed)


MAIN = ("stock", "mapo")  # the stock trainer is the control
FINE_TUNED = ("stock", "control", "mapo")

CHOICES = (
    "case_pairs",
    "fixed_rates",
    "fall_005",
    "fall_02",
    "kappa_2",
    "kappa_1",
    "kappa_4",
    "wrong_too",
)
CHOSEN = ("control", "mapo", "pseudo_label", "chosen_label", "regions")
WORTH = ("mapo_10", "regions_10", "outlines_10", "outlines_30", "chosen_label_10")
RANKED = {  # data set -> trainer by its metric, and the plain loss that claims the same
    "Nuclei": ("mapo_lesion_f1", "loss_blob"),
    "Vessels": ("mapo_cldice", "loss_cldice"),
    "PolypGen": ("mapo_lesion_f1", "mapo_false_volume", "loss_blob"),
    "Hippocampus": ("mapo_nsd",),
}
REFERENCES = ("network", "no_reference")  # against `mapo` of the same seeds
DROPOUT = ("dropout_control", "dropout")
STRONG = ("control_strong", "strong_dropout")

BLOCKS = [
    Block("choices", CHOSEN, (0, 1, 2), FEW_LABELLED),
    Block("choices", WORTH, (0, 1, 2), FEW_LABELLED),
    Block("choices", ("control", "mapo", "rate_03", "rate_01", "kappa_half"), (3,), FEW_LABELLED),
    Block("short", MAIN, (4,)),
    Block("finetune", FINE_TUNED, (3, 4, 5), ("Hippocampus", "Kvasir")),
    Block("short", MAIN, (5, 6, 7)),
    Block("finetune", FINE_TUNED, (6,), ("Hippocampus", "Kvasir")),
    *(Block("short", arms, CLAIMING_SEEDS, (name,)) for name, arms in RANKED.items()),
    Block("short", REFERENCES, CLAIMING_SEEDS),
    Block("short", ("channel",), CHOOSING_SEEDS),
    Block("short", DROPOUT, (3, 4, 5)),
    Block("short", ("kappa_2", "kappa_1", "wrong_too"), CHOOSING_SEEDS),
    Block("short", (*MAIN, "dry"), CHOOSING_SEEDS),
    Block("short", STRONG, CHOOSING_SEEDS, ("Hippocampus",)),
    Block("finetune", FINE_TUNED, CLAIMING_SEEDS),
    Block("short", ("paper_loss",), CLAIMING_SEEDS),
    Block("short", CHOICES, CHOOSING_SEEDS),
    Block("long", MAIN, (4,)),
]


def list_cells(patterns: Sequence[str] = ()) -> list[Cell]:
    """Cells of the plan in their order, each once.

    Args:
        patterns: With wildcards; a cell whose name fits none is left out. None given: all stay.
    """
    cells = dict.fromkeys(cell for block in BLOCKS for cell in block.cells())
    return [
        cell
        for cell in cells
        if not patterns or any(fnmatchcase(cell.name, pattern) for pattern in patterns)
    ]
