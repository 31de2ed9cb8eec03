"""The metric that ranks: of whole candidates, and what each part of one alone does to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.parts import (
    LabelMap,
    Mask,
    foreground_heads,
    head_mask,
    split_heads,
)
from nnunetv2_mapo.metrics.change import Box, Change, Measured, enclose, inside, overlap
from nnunetv2_mapo.metrics.scores import Score, find_score

Spacing = Sequence[float]
_Measure = Callable[[Mask, Mask, Spacing], Measured]


class Term(NamedTuple):
    """A metric of a weighted mean."""

    score: Score
    weight: float


@dataclass(frozen=True)
class Ranking:
    """A weighted mean of metrics, each the mean over the foreground classes, or regions.

    Classes count that are in the ground truth or the prediction; without any the value is 1, as is
    the Dice of two empty masks.
    """

    terms: tuple[Term, ...]  # weights sum up to 1
    labels: Labels

    @classmethod
    def by(cls, metric: str | Mapping[str, float], tolerance_mm: float, labels: Labels) -> Ranking:
        """Ranking by `MAPOConfig.metric`; the tolerance is that of NSD.

        Raises:
            ImportError, AttributeError: There is no such function of the user.
        """
        weights = {metric: 1.0} if isinstance(metric, str) else metric
        total = sum(weights.values())
        terms = [
            Term(find_score(name, tolerance_mm), weight / total) for name, weight in weights.items()
        ]
        return cls(tuple(terms), labels)

    def value(
        self, prediction: LabelMap, target: LabelMap, spacing_mm: Spacing, valid: Mask | None = None
    ) -> float:
        """Value of one prediction, arguments as of `look_at`."""
        return self.look_at(prediction, target, spacing_mm, valid, others=()).value

    def look_at(
        self,
        plain: LabelMap,
        target: LabelMap,
        spacing_mm: Spacing,
        valid: Mask | None = None,
        *,
        others: Iterable[LabelMap],
    ) -> RankedSample:
        """Measure the plain prediction of a sample, so that parts can be ranked against it.

        Args:
            plain: Label map, shape `(*spatial)`.
            target: Ground truth as a label map, the same shape.
            spacing_mm: Distance of neighbouring voxels along each axis.
            valid: Mask of the voxels that count, the same shape; None: all do.
            others: Label maps that parts will be of; a class is looked at where any map has it.
        """
        boxes = _find_boxes([plain, target, *others], self.labels)
        if any(term.score.needs_all for term in self.terms):
            boxes = dict.fromkeys(boxes, tuple(slice(0, size) for size in plain.shape))
        measures = list(dict.fromkeys(term.score.measure for term in self.terms))
        heads = {}
        for head, box in boxes.items():
            ours, true = (head_mask(each[box], head, self.labels) for each in (plain, target))
            if valid is not None:
                ours, true = ours & valid[box], true & valid[box]
            heads[head] = _Head(box, ours, true, spacing_mm, measures)
        return RankedSample(self, plain, heads)

    def mean(self, counts: Iterable[Mapping[_Measure, Any] | None]) -> float:
        """Value by what was counted of each class; None where a class is in neither mask."""
        present = [each for each in counts if each is not None]
        if not present:
            return 1.0
        values = [
            term.weight * term.score.score(each[term.score.measure])
            for term in self.terms
            for each in present
        ]
        return float(sum(values) / len(present))


def _find_boxes(maps: Sequence[LabelMap], labels: Labels) -> dict[int, Box]:
    """Box around each foreground class, or region, that is in any of these maps."""
    heads = foreground_heads(labels)
    found: dict[int, list[Box]] = {head: [] for head in heads}
    for each in maps:
        if labels.regions is None:
            boxes = find_objects(each, max_label=labels.num_heads - 1)
        else:
            masks = split_heads(each, labels)
            boxes = [find_objects(mask.view(np.int8), max_label=1)[0] for mask in masks]
        for head, box in zip(heads, boxes, strict=True):
            if box is not None:
                found[head].append(box)
    return {head: enclose(boxes) for head, boxes in found.items() if boxes}


class _Head:
    """One foreground class, or region, of the plain prediction; measured when it is needed.

    Args:
        box: Part of the sample that holds all of it, whatever part is changed.
        plain: Mask of the plain prediction in the box.
        target: The same of the ground truth.
        spacing_mm: Of the box's axes.
        measures: What to measure of the two.
    """

    def __init__(
        self,
        box: Box,
        plain: Mask,
        target: Mask,
        spacing_mm: Spacing,
        measures: Sequence[_Measure],
    ) -> None:
        self.box, self.plain, self._target = box, plain, target
        self._spacing_mm, self._measures = spacing_mm, measures
        self._num_predicted, self._has_target = int(plain.sum()), bool(target.any())
        self._measured: dict[_Measure, Measured] = {}

    def counts(self, change: Change | None = None) -> dict[_Measure, Any] | None:
        """What is counted, with a change or without; None if the class is in neither mask."""
        num_predicted = self._num_predicted
        if change is not None:
            num_predicted += int(change.mask.sum()) - int(self.plain[change.box].sum())
        if not (num_predicted or self._has_target):
            return None
        if not self._measured:
            self._measured = {
                measure: measure(self.plain, self._target, self._spacing_mm)
                for measure in self._measures
            }
        return {
            measure: each.counts if change is None else each.counts_with(change)
            for measure, each in self._measured.items()
        }


class RankedSample:
    """The plain prediction of a sample by the metric that ranks."""

    def __init__(self, ranking: Ranking, plain: LabelMap, heads: Mapping[int, _Head]) -> None:
        self._ranking, self._plain, self._heads = ranking, plain, heads
        self._counts = {number: head.counts() for number, head in heads.items()}
        self.value = ranking.mean(self._counts.values())

    def find_effects(
        self, candidate: LabelMap, parts: NDArray[np.integer], num_parts: int
    ) -> NDArray[np.float64]:
        """Change of the value when one part of the plain prediction is the candidate's.

        Args:
            candidate: Label map, shape `(*spatial)`, one of those that `look_at` was told of.
            parts: Number of the part of each voxel in which it may differ, 0 for none, same shape.
            num_parts: P, their largest number.

        Returns:
            Effect of each of the P parts alone, shape `(P + 1,)`; 0 for number 0.
        """
        boxes = find_objects(parts, max_label=num_parts)
        effects = np.zeros(num_parts + 1)
        for number, box in enumerate(boxes, 1):
            if box is None:
                continue
            is_part = parts[box] == number
            merged = np.where(is_part, candidate[box], self._plain[box])
            counts = {**self._counts}
            for head, change in self._find_changes(merged, is_part, box):
                counts[head] = self._heads[head].counts(change)
            effects[number] = self._ranking.mean(counts.values()) - self.value
        return effects

    def _find_changes(
        self, merged: LabelMap, is_part: Mask, box: Box
    ) -> Iterator[tuple[int, Change]]:
        """Number of each class that is another in a box, and its change."""
        for number, head in self._heads.items():
            shared = overlap(box, head.box)
            if shared is None:
                continue
            place, there = inside(shared, box), inside(shared, head.box)
            before = head.plain[there]
            mask = head_mask(merged[place], number, self._ranking.labels)
            after = np.where(is_part[place], mask, before)  # others may be ignored
            if not np.array_equal(before, after):
                yield number, Change(there, after)
