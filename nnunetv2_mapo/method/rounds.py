"""A round of mining: every training case -> preference pairs -> store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import distributed as dist
from tqdm import tqdm

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.examples import choose_samples
from nnunetv2_mapo.method.mining import LoadCase, Log, Miner, mine_within_memory
from nnunetv2_mapo.method.pairing import SLAB, MinedCase
from nnunetv2_mapo.method.store import MANIFEST, Round, SampleRecord, read_round
from nnunetv2_mapo.method.summary import (
    Records,
    RoundSummary,
    explain_no_pairs,
    quantile_tau,
    summarize,
    tabulate_round,
)
from nnunetv2_mapo.method.volumes import Channel, Volume, make_compressed
from nnunetv2_mapo.method.windows import split_planes
from nnunetv2_mapo.support.threads import read_ahead

T = TypeVar("T")


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
        dist.all_gather_object(parts, part, _waiting_group(dist.group.WORLD))
        return parts

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """Cases, or other work, of this one."""
        return work[self.rank :: self.size]


@cache
def _waiting_group(_world: Any) -> Any:
    """All ranks, which wait as long as a round may take; NCCL would give up after minutes."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=2))


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
        tau = quantile_tau(found, config.tau_quantile, config.tau_max)
        kept = {}
        for identifier in ranks.share(identifiers):
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
            for identifier, volumes in progress:
                image, segmentation = volumes
                volumes.clear()  # what was read of an image stays in memory while it is open
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
                pairs = worker.submit(miner.finder.find_pairs, candidates, truth)
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
    tau_max = miner.config.tau_max
    kept = [
        replace(each, rejected=None, num_disagreeing=0) if each.gap_within(tau_max) < tau else each
        for each in records
    ]
    if kept != records:
        old = mined.open_stack(identifier)
        stack = make_compressed(old.shape, np.int16)
        every = (slice(None),) * 3
        for part in split_planes(every, old.shape[1:], SLAB):
            stack[(slice(0, 1), *part)] = old[(slice(0, 1), *part)]
        for place, record in zip(miner.finder.find_units(old.shape[1:]), kept, strict=True):
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
        shown = [sample.identifier for sample in choose_samples(earlier.cases)]
        kept = {path(name) for name in shown for path in (earlier.path, earlier.record_path)}
        # the record first, which says that its case is there; also of cases that left the split
        for path in sorted(earlier.folder.glob("*.b2nd*"), reverse=True):
            if path not in kept:
                path.unlink(missing_ok=True)
