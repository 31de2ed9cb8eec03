"""A round of mining: every training case -> preference pairs -> store, and what that found."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from torch import distributed as dist
from tqdm import tqdm

from nnunetv2_mapo.method.config import Candidates, MAPOConfig
from nnunetv2_mapo.method.examples import choose_samples
from nnunetv2_mapo.method.mining import SLAB, LoadCase, Log, MinedCase, Miner, mine_within_memory
from nnunetv2_mapo.method.store import MANIFEST, MinedRound, Round, SampleRecord, read_round
from nnunetv2_mapo.method.volumes import Channel, Volume, make_compressed
from nnunetv2_mapo.method.windows import split_planes
from nnunetv2_mapo.support.threads import read_ahead

Records = dict[str, list[SampleRecord]]  # of each case
T = TypeVar("T")

HARDLY_LEARNT = 0.1  # plain Dice below which candidates say nothing about a finished warm-up


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work: the number of this one, and how many there are."""

    rank: int
    size: int

    @classmethod
    def find(cls) -> Ranks:
        """Those of torch.distributed; a single one without it."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls(0, 1)

    def gather(self, part: T) -> list[T]:
        """What every rank has, known to all of them; it waits until every one is here."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts

    def meet(self, place: int, num_cases: int) -> None:
        """Wait at some cases of this rank's share, so often that the backend's time is never up."""
        if place % 20 == 0 and place < num_cases // self.size:
            self.gather(None)

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """Cases, or other work, of this one."""
        return work[self.rank :: self.size]


def settle_values(mined: Round, find: Callable[[], Sequence[float]]) -> tuple[float, ...]:
    """What a round's candidates differ in: found by the first rank if it is not stored yet."""
    ranks = Ranks.find()
    if ranks.rank == 0 and not mined.read_values():
        mined.write_values(find())
    return ranks.gather(mined.read_values() if ranks.rank == 0 else ())[0]


def draw_cases(identifiers: Sequence[str], config: MAPOConfig, number: int) -> list[str]:
    """Cases that the round of this number mines, in their order; the same at each call.

    A case is drawn by its name, the seed and the round alone: in the order of hashes of these.
    """
    wanted = config.cases_per_round
    if wanted is None:
        return list(identifiers)
    if not isinstance(wanted, int):
        wanted = max(1, round(wanted * len(identifiers)))

    def draw(identifier: str) -> bytes:
        return hashlib.sha256(f"{config.seed}/{number}/draw/{identifier}".encode()).digest()

    drawn = set(sorted(identifiers, key=draw)[:wanted])
    return [identifier for identifier in identifiers if identifier in drawn]


def mine_round(
    miner: Miner, load_case: LoadCase, identifiers: Sequence[str], mined: Round, log: Log
) -> RoundSummary:
    """Mine the cases of a round that are not in its store yet, shared among all ranks.

    The seed of the miner's settings, the round's number and the case's name decide the candidates,
    so they do not depend on the order of the cases, the number of ranks or an interruption. Each
    case is stored while the network is at the next one or the one after, the manifest last. The
    summary is of the whole round, the same on every rank.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
        WriteError: The disk is full.
    """
    started = time.monotonic()
    ranks, config, number = Ranks.find(), miner.config, mined.origin["round"]
    # Each rank reads the files of its share; all have before the first case changes.
    finished = ranks.gather(mined.find_finished(ranks.share(identifiers)))
    found = _merge(part.records for part in finished)
    missing = [identifier for identifier in identifiers if identifier not in found]
    if damaged := sorted(identifier for part in finished for identifier in part.damaged):
        log(f"WARNING: files of {damaged} in {mined.folder} are damaged; they are mined again")
    if missing and found:
        log(f"{len(found)} of {len(identifiers)} cases are in {mined.folder} already")
    if missing and ranks.rank == 0:
        (mined.folder / MANIFEST).unlink(missing_ok=True)  # cases are about to change
    found |= _merge(ranks.gather(_mine_cases(miner, load_case, missing, mined, log, ranks)))
    if config.tau_quantile is not None:
        tau = quantile_tau(found, config.tau_quantile)
        kept = {}
        for place, identifier in enumerate(ranks.share(identifiers)):
            ranks.meet(place, len(identifiers))
            kept[identifier] = _drop_small_gaps(mined, identifier, found[identifier], miner, tau)
        found |= _merge(ranks.gather(kept))
    records = {identifier: found[identifier] for identifier in identifiers}
    if ranks.rank == 0:
        mined.write_manifest(records, miner.sampler.values)
    summary, seconds = summarize(records, config), time.monotonic() - started
    candidates = config.candidates(len(miner.patch_size))._replace(values=miner.sampler.values)
    table = tabulate_round(records, candidates)
    log(
        f"round {number}: {summary}; {len(missing)} cases mined in {seconds:.1f} s\n{table}\n"
        f"{summary.describe_gaps()}"
    )
    if summary.num_pairs == 0:
        log(explain_no_pairs(summary, candidates, config.pair))
    return summary


def _merge(parts: Iterable[Records]) -> Records:
    return dict(chain.from_iterable(part.items() for part in parts))


def _mine_cases(
    miner: Miner, load_case: LoadCase, missing: Sequence[str], mined: Round, log: Log, ranks: Ranks
) -> Records:
    """Mine and store this rank's share of the missing cases; arguments as of `mine_round`.

    While the network is at a case, the next one is opened, and the pairs of the one before are
    found; then the network measures their margins, and they are written.
    """
    mine, writes = ranks.share(missing), list[Future[Records]]()
    cases = read_ahead((identifier, list(load_case(identifier))) for identifier in mine)
    with (
        tqdm(
            cases, desc="mining", unit="case", total=len(mine), disable=ranks.rank > 0
        ) as progress,
        ThreadPoolExecutor(1, thread_name_prefix="pairs") as worker,
    ):
        opened, num_pairs = None, 0  # no more than one case, for the memory
        try:
            for place, (identifier, volumes) in enumerate(progress):
                image, segmentation = volumes
                volumes.clear()  # what was read of an image stays in memory while it is open
                ranks.meet(place, len(missing))
                miner, candidates = mine_within_memory(
                    miner, partial(Miner.find_candidates, image=image),
                    f"{miner.config.seed}/{mined.origin['round']}/{identifier}", log,
                )  # fmt: skip
                del image
                if opened is not None:
                    miner, write = _close(opened, miner, load_case, mined, worker, log)
                    writes.append(write)
                    num_pairs += sum(record.has_pair for record in opened.pairs.result().records)
                    progress.set_postfix(pairs=num_pairs)
                    opened = None
                for write in writes[-2:-1]:
                    write.result()  # an error ends the round now
                truth = Channel(segmentation, 0)
                pairs = worker.submit(miner.find_pairs, candidates, truth)
                opened = _Opened(identifier, truth, pairs)
                del candidates
        except BaseException:  # the last case is done but for its margins
            if opened is not None:
                with suppress(Exception):  # of two errors the first one says more
                    _close(opened, miner, load_case, mined, worker, log)
            raise
        if opened is not None:
            miner, write = _close(opened, miner, load_case, mined, worker, log)
            writes.append(write)
        return _merge(write.result() for write in writes)


class _Opened(NamedTuple):
    """A case whose pairs are being found."""

    identifier: str
    truth: Volume
    pairs: Future[MinedCase]


def _close(
    case: _Opened,
    miner: Miner,
    load_case: LoadCase,
    mined: Round,
    worker: ThreadPoolExecutor,
    log: Log,
) -> tuple[Miner, Future[Records]]:
    """Measure the margins of a case's pairs, if they are stored, and let the case be written.

    It returns the miner for the work to come, too.
    """
    pairs = case.pairs.result()
    if miner.config.reference == "cached":
        image, _ = load_case(case.identifier)
        measure = partial(Miner.add_margins, image=image, mined=pairs)
        miner, _ = mine_within_memory(miner, measure, case.identifier, log)

    def write() -> Records:
        preferences, records = pairs
        channels = [Channel(preferences, number) for number in range(preferences.shape[0])]
        mined.write_case(case.identifier, [case.truth, *channels], records, miner.patch_size)
        return {case.identifier: records}

    return miner, worker.submit(write)


def _drop_small_gaps(
    mined: Round, identifier: str, records: list[SampleRecord], miner: Miner, tau: float
) -> list[SampleRecord]:
    """Take the pairs off a case whose gap is below τ; a case without any stays as it is."""
    kept = [
        replace(each, rejected=None, num_disagreeing=0) if each.gap < tau else each
        for each in records
    ]
    if kept != records:
        old = mined.open_stack(identifier)
        stack = make_compressed(old.shape, np.int16)
        every = (slice(None),) * 3
        for part in split_planes(every, old.shape[1:], SLAB):
            stack[(slice(0, 1), *part)] = old[(slice(0, 1), *part)]
        for place, record in zip(miner.find_units(old.shape[1:]), kept, strict=True):
            if record.rejected is not None:
                for part in split_planes(place, old.shape[1:], SLAB):
                    stack[(slice(1, None), *part)] = old[(slice(1, None), *part)]
        del old  # its file is about to be replaced
        channels = [Channel(stack, number) for number in range(stack.shape[0])]
        mined.write_case(identifier, channels, kept, miner.patch_size)
    return kept


def thin_out_earlier(mined: Round) -> None:
    """Delete the pairs of the rounds before this one, but a few that a report shows.

    What mining found out about their cases stays, in the manifest.
    """
    for manifest in sorted(mined.folder.parent.glob(f"round_*/{MANIFEST}")):
        earlier = read_round(manifest)
        if earlier is None or earlier.origin["round"] >= mined.origin["round"]:
            continue
        shown = {sample.identifier for sample in choose_samples(earlier.cases)}
        for identifier in earlier.cases.keys() - shown:
            # in this order: a record says that its case is there
            earlier.record_path(identifier).unlink(missing_ok=True)
            earlier.path(identifier).unlink(missing_ok=True)


# What a round found -------------------------------------------------------------------------------


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
    tau = config.tau if quantile is None else quantile_tau(cases, quantile)
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


def quantile_tau(cases: Records, quantile: float) -> float:
    """τ at which the share 1 - `quantile` of a round's samples has a pair, `quantile` in [0, 1).

    It is the Dice gap of one of the samples. Those without foreground do not count, where a single
    voxel may be a gap of 1, nor do those whose candidates all have the same Dice; 0 if none counts.
    """
    records = list(chain.from_iterable(cases.values()))
    gaps = [each.gap for each in records if each.has_foreground and each.gap > 0]
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
