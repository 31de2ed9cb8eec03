"""What a round of mining found, in numbers and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_mapo.method.config import Candidates, MAPOConfig
from nnunetv2_mapo.method.store import MinedRound, SampleRecord
from nnunetv2_mapo.support.table import format_table


@dataclass(frozen=True)
class CandidateSummary:
    """What became of one candidate, such as that of one dropout rate, in a round.

    Attributes:
        dice_mean: Mean Dice over all samples.
        dice_quartiles: Lower quartile, median and upper quartile.
        num_chosen: Pairs in which this candidate is the chosen one.
        num_rejected: Pairs in which it is the rejected one.
    """

    dice_mean: float
    dice_quartiles: tuple[float, float, float]
    num_chosen: int
    num_rejected: int


@dataclass(frozen=True)
class RoundSummary:
    """What a round of mining found, over all its training samples.

    Attributes:
        tau: Least Dice gap of a pair.
        num_samples: Training samples: cases, slices or windows.
        num_pairs: Those with a preference pair.
        num_parts: Parts of region pairs, over all samples.
        num_preferred: Those of them that are preferred to the plain prediction.
        dice_plain: Mean Dice of the plain prediction, over all samples.
        dice_chosen: Mean Dice of chosen over the pairs; NaN without pairs.
        dice_rejected: The same of rejected.
        disagreement: Mean share of disagreement voxels of the pairs; NaN without pairs.
        gaps: Dice gap between best and worst candidate of each sample.
        candidates: One of each candidate, in the sampler's order.
        num_mined: Cases that were mined now; the others were in the store.
        seconds: Duration of mining.
    """

    tau: float
    num_samples: int
    num_pairs: int
    num_parts: int
    num_preferred: int
    dice_plain: float
    dice_chosen: float
    dice_rejected: float
    disagreement: float
    gaps: list[float]
    candidates: list[CandidateSummary]
    num_mined: int
    seconds: float

    def __str__(self) -> str:
        pairs = ""
        if self.num_parts:
            share = self.num_preferred / self.num_parts
            pairs = f", {self.num_parts} parts of which {share:.1%} are preferred"
        if self.num_pairs:
            pairs += (
                f", of the pairs chosen {self.dice_chosen:.4f}, rejected {self.dice_rejected:.4f}, "
                f"disagreement {self.disagreement:.2%} of the voxels"
            )
        return (
            f"{self.num_pairs} pairs / {self.num_samples} samples, Dice plain "
            f"{self.dice_plain:.4f}{pairs}; {self.num_mined} cases mined in {self.seconds:.1f} s"
        )


def summarize(
    cases: dict[str, list[SampleRecord]], *, tau: float, num_mined: int, seconds: float
) -> RoundSummary:
    """Summarise a round from the records of every case; the other arguments as of the summary."""
    samples = [record for records in cases.values() for record in records]
    pairs = [record for record in samples if record.has_pair]
    return RoundSummary(
        tau=tau,
        num_samples=len(samples),
        num_pairs=len(pairs),
        num_parts=sum(record.num_parts for record in samples),
        num_preferred=sum(record.num_preferred for record in samples),
        dice_plain=_mean([record.dice[0] for record in samples]),
        dice_chosen=_mean([record.dice_chosen for record in pairs]),
        dice_rejected=_mean([record.dice_rejected for record in pairs]),
        disagreement=_mean([record.num_disagreeing / record.num_voxels for record in pairs]),
        gaps=[record.gap for record in samples],
        candidates=_summarize_candidates(samples),
        num_mined=num_mined,
        seconds=seconds,
    )


def quantile_tau(cases: Mapping[str, Sequence[SampleRecord]], quantile: float) -> float:
    """τ at which the share 1 - `quantile` of a round's samples has a pair.

    Samples without foreground do not count, where a single voxel may be a gap of 1, nor do those
    whose candidates all have the same Dice.

    Args:
        cases: Records of the round.
        quantile: In [0, 1).

    Returns:
        The Dice gap of one of the samples; 0 if none counts.
    """
    records = [record for records in cases.values() for record in records]
    gaps = [each.gap for each in records if each.has_foreground and each.gap > 0]
    return float(np.quantile(gaps, quantile, method="higher")) if gaps else 0.0


def summarize_stored(mined: MinedRound) -> RoundSummary:
    """Summarise a round that was mined before."""
    config = MAPOConfig.from_dict(mined.origin["settings"])
    tau = config.tau
    if config.tau_quantile is not None:
        tau = quantile_tau(mined.cases, config.tau_quantile)
    return summarize(mined.cases, tau=tau, num_mined=len(mined.cases), seconds=0.0)


def _summarize_candidates(samples: Sequence[SampleRecord]) -> list[CandidateSummary]:
    pairs = [record for record in samples if record.rejected is not None]  # two candidates
    summaries = []
    for index, dice in enumerate(zip(*(record.dice for record in samples), strict=True)):
        lower, median, upper = np.quantile(dice, (0.25, 0.5, 0.75)).tolist()
        summaries.append(
            CandidateSummary(
                dice_mean=_mean(dice),
                dice_quartiles=(lower, median, upper),
                num_chosen=sum(record.chosen == index for record in pairs),
                num_rejected=sum(record.rejected == index for record in pairs),
            )
        )
    return summaries


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def tabulate_round(summary: RoundSummary, candidates: Candidates) -> str:
    """Table of a round's candidates, one line each, and what the pairs are like."""
    header = [candidates.label, "mean Dice", "25 %", "median", "75 %"]
    rows = [
        [f"{value:g}", *(f"{dice:.4f}" for dice in (each.dice_mean, *each.dice_quartiles))]
        for value, each in zip(candidates.values, summary.candidates, strict=True)
    ]
    if not summary.num_parts:  # two of the candidates are the pair
        header += ["chosen", "rejected"]
        for row, each in zip(rows, summary.candidates, strict=True):
            row += [str(each.num_chosen), str(each.num_rejected)]
    share = summary.num_pairs / summary.num_samples
    text = (
        f"{format_table(header, rows)}\n"
        f"Dice gap of a sample's best and worst candidate: median {np.median(summary.gaps):.4f}; "
        f"{summary.num_pairs} of {summary.num_samples} samples have a pair ({share:.1%}, tau = "
        f"{summary.tau:.4g})"
    )
    if summary.num_pairs:
        text += f", which disagrees in {summary.disagreement:.2%} of the voxels"
    return text


def explain_no_pairs(summary: RoundSummary, candidates: Candidates, pair: str) -> str:
    """Warning for a round without any pair: how far it was from one, and what to change."""
    largest, median = max(summary.gaps, default=0.0), float(np.median(summary.gaps or [0.0]))
    label, setting, values = candidates
    advice = f"candidates that differ more ({setting}), or another length of the warm-up"
    needed = "a candidate with a part that changes the Dice of the sample"
    if pair == "case":
        needed = f"a Dice gap of tau = {summary.tau:.4g}, and more than 0, between two candidates"
        if largest > 0:
            advice = (
                f"a smaller tau (half of the samples would have a pair at {median:.3f}), a "
                f"tau_quantile, {advice}"
            )
    return (
        f"WARNING: this round has NO preference pair, so it trains with nnU-Net's own loss alone. "
        f"A pair needs {needed}; the largest gap of any sample is {largest:.4f}, the median "
        f"{median:.4f} ({label} from {min(values)} to {max(values)}, plain Dice "
        f"{summary.dice_plain:.4f}). To get pairs, derive a trainer whose MAPOConfig has {advice}."
    )
