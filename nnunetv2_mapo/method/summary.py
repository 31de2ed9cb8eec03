"""What a round of mining found: its pairs, the Dice of its candidates, how far they are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd

from nnunetv2_mapo.method.config import Candidates, MAPOConfig
from nnunetv2_mapo.method.store import MinedRound, SampleRecord

Records = dict[str, list[SampleRecord]]  # of each case
HARDLY_LEARNT = 0.1  # plain Dice below which candidates say nothing about a finished warm-up


@dataclass(frozen=True)
class RoundSummary:
    """What a round of mining found, over all its training samples: cases, slices or windows."""

    tau: float  # least Dice gap of a pair
    num_samples: int
    num_pairs: int  # samples with a preference pair
    num_parts: int  # of region pairs
    num_preferred: int  # parts that are preferred to the plain prediction
    dice_plain: float  # mean Dice of the plain prediction
    dice_chosen: float  # the same of chosen over the pairs; NaN without pairs
    dice_rejected: float
    disagreement: float  # mean share of disagreement voxels of the pairs; NaN without pairs
    gaps: list[float]  # between best and worst candidate of each sample
    ranked_by: str = "Dice"
    gap_of: str = "Dice"  # what the gaps are of: of region pairs Dice, whatever ranks the parts
    # means over the pairs by the metric that ranks; NaN if that is Dice
    score_plain: float = math.nan
    score_chosen: float = math.nan
    score_rejected: float = math.nan

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
        if math.isfinite(self.score_plain):
            pairs += (
                f"; {self.ranked_by} plain {self.score_plain:.4f}, chosen {self.score_chosen:.4f}, "
                f"rejected {self.score_rejected:.4f}"
            )
        plain = f"Dice plain {self.dice_plain:.4f}"
        return f"{self.num_pairs} pairs / {self.num_samples} samples, {plain}{pairs}"

    def describe_gaps(self) -> str:
        """How much the candidates of a sample differ, and how many samples have a pair."""
        return (
            f"{self.gap_of} gap of a sample's best and worst candidate: median "
            f"{np.median(self.gaps):.4f}; "
            f"{self.num_pairs} of {self.num_samples} samples have a pair "
            f"({self.num_pairs / self.num_samples:.1%}, tau = {self.tau:.4g})"
        )


def summarize(cases: Records, config: MAPOConfig) -> RoundSummary:
    """Summarise a round from the records of every case and the settings that it was mined with."""
    quantile = config.tau_quantile
    tau = config.tau if quantile is None else quantile_tau(cases, quantile, config.tau_max)
    records = list(chain.from_iterable(cases.values()))
    pairs = [(r.dice_chosen, r.dice_rejected, r.num_disagreeing / r.num_voxels)
             for r in records if r.has_pair]  # fmt: skip
    means = pd.DataFrame(pairs, columns=["dice_chosen", "dice_rejected", "disagreement"]).mean()
    scores = [record.ranked for record in records if record.has_pair and record.ranked]
    ranked = {
        f"score_{name}": float(np.mean([each[place] for each in scores])) if scores else math.nan
        for place, name in enumerate(("plain", "chosen", "rejected"))
    }
    return RoundSummary(
        tau=tau,
        num_samples=len(records),
        num_pairs=len(pairs),
        num_parts=sum(record.num_parts for record in records),
        num_preferred=sum(record.num_preferred for record in records),
        dice_plain=float(np.mean([record.dice[0] for record in records])),
        **means.astype(float).to_dict(),
        gaps=[record.gap for record in records],
        ranked_by=config.ranked_by,
        gap_of=config.ranked_by if config.pair == "case" else "Dice",
        **ranked,
    )


def summarize_stored(mined: MinedRound) -> RoundSummary:
    """Summarise a round that was mined before."""
    return summarize(mined.cases, MAPOConfig.from_dict(mined.origin["settings"]))


def quantile_tau(cases: Records, quantile: float, tau_max: float = 1.0) -> float:
    """τ at which the share 1 - `quantile` of a round's samples has a pair, `quantile` in [0, 1).

    It is the gap of one of the samples' pairs, at most `tau_max`. Those without foreground do not
    count, where a single voxel may be a gap of 1, nor do those whose candidates all have the same
    Dice; 0 if none counts.
    """
    records = list(chain.from_iterable(cases.values()))
    gaps = [each.gap_within(tau_max) for each in records if each.has_foreground]
    gaps = [gap for gap in gaps if gap > 0]
    return float(np.quantile(gaps, quantile, method="higher")) if gaps else 0.0


def tabulate_round(cases: Records, candidates: Candidates) -> str:
    """Table of a round's candidates, one line each; how often each is chosen or rejected."""
    records = list(chain.from_iterable(cases.values()))
    dice = pd.DataFrame([r.dice for r in records], columns=[f"{v:g}" for v in candidates.values])
    table = dice.describe().T[["mean", "25%", "50%", "75%"]]
    table = table.rename(columns={"mean": "mean Dice", "50%": "median"})
    if not any(record.num_parts for record in records):  # two of the candidates are the pair
        pairs = [record for record in records if record.rejected is not None]
        for role in ("chosen", "rejected"):
            numbers = np.array([getattr(record, role) for record in pairs], int)
            table[role] = np.bincount(numbers, minlength=len(table))
    text: str = (
        table.rename_axis(candidates.label)
        .reset_index()
        .to_string(index=False, float_format="{:.4f}".format)
    )
    return text


def explain_no_pairs(summary: RoundSummary, candidates: Candidates, pair: str) -> str:
    """Warning for a round without any pair: how far it was from one, and what to change."""
    largest, median = max(summary.gaps), float(np.median(summary.gaps))
    label, setting, values = candidates
    other = f"candidates that differ more ({setting})"
    advice = f"{other}, or another length of the warm-up"
    needed = f"a candidate with a part that changes the {summary.ranked_by} of the sample"
    if pair == "case":
        needed = (
            f"a {summary.gap_of} gap of tau = {summary.tau:.4g}, and more than 0, between two "
            "candidates"
        )
        if largest > 0:
            advice = (
                f"a smaller tau (half of the samples would have a pair at {median:.3f}), a "
                f"tau_quantile, {advice}"
            )
    if largest == 0:  # dropout changes nothing that counts
        advice = f"a longer warm-up, or {other}"
    if summary.dice_plain < HARDLY_LEARNT:
        advice = "a longer warm-up: the network has hardly learnt anything yet"
    return (
        f"WARNING: this round has NO preference pair, so it trains with nnU-Net's own loss alone. "
        f"A pair needs {needed}; the largest gap of any sample is {largest:.4f}, the median "
        f"{median:.4f} ({label} from {min(values)} to {max(values)}, plain Dice "
        f"{summary.dice_plain:.4f}). To get pairs, derive a trainer whose MAPOConfig has {advice}."
    )
