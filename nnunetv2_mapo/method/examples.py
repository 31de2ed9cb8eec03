"""Pairs of a round that stand for all of them: those that a report shows."""

from __future__ import annotations

from typing import NamedTuple

from nnunetv2_mapo.method.store import SampleRecord


class Sample(NamedTuple):
    """A training sample with a pair: its case, its place in that, what mining found out."""

    identifier: str
    number: int
    record: SampleRecord

    @property
    def gap(self) -> float:
        """Dice of chosen minus Dice of rejected."""
        return self.record.dice_chosen - self.record.dice_rejected


def choose_samples(cases: dict[str, list[SampleRecord]]) -> list[Sample]:
    """Of each case the pair with the largest gap; of these the largest, median and smallest gap.

    There are fewer with fewer cases; the median is the larger middle where their number is even.
    """
    samples = []
    for identifier, records in sorted(cases.items()):
        each = [Sample(identifier, n, record) for n, record in enumerate(records)]
        if pairs := [sample for sample in each if sample.record.has_pair]:
            samples.append(max(pairs, key=lambda sample: sample.gap))
    samples.sort(key=lambda sample: sample.gap, reverse=True)
    places = {0, (len(samples) - 1) // 2, len(samples) - 1}
    return [sample for place, sample in enumerate(samples) if place in places]
