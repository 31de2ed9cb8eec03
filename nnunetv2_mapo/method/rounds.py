"""A round of mining: every training case -> preference pairs -> store, shared among the ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist
from tqdm import tqdm

from nnunetv2_mapo.method.mining import Miner, mine_within_memory
from nnunetv2_mapo.method.store import Round, SampleRecord, StoreError, stack_preferences
from nnunetv2_mapo.method.summary import RoundSummary, quantile_tau, summarize

LoadCase = Callable[[str], tuple[Tensor, NDArray[Any]]]


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work.

    Attributes:
        rank: Number of this one.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def find(cls) -> Ranks:
        """Those of torch.distributed; a single one without it."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def barrier(self) -> None:
        """Wait until every one is here."""
        if self.size > 1:
            dist.barrier()

    def meet(self, number: int, num_cases: int) -> None:
        """Wait at some of the cases, often enough for the backend's time never to be up.

        Args:
            number: Of the case in this rank's share.
            num_cases: In all shares together.
        """
        if number % 20 == 0 and number < num_cases // self.size:
            self.barrier()

    def share(self, identifiers: Sequence[str]) -> Sequence[str]:
        """Cases of this one."""
        return identifiers[self.rank :: self.size]


def with_values(mined: Round, find: Callable[[], Sequence[float]]) -> Round:
    """The round with what its candidates differ in: found once, by the first rank.

    Args:
        mined: The round.
        find: Finds the values; called where none are stored yet.
    """
    ranks = Ranks.find()
    if ranks.rank == 0 and not mined.read_values():
        mined.write_values(find())
    ranks.barrier()
    return replace(mined, values=mined.read_values())


def mine_round(
    miner: Miner,
    load_case: LoadCase,
    identifiers: Sequence[str],
    mined: Round,
    seed: int,
    log: Callable[[str], None],
    *,
    tau_quantile: float | None = None,
) -> RoundSummary:
    """Mine the cases of a round that are not in its store yet, shared among all ranks.

    Args:
        miner: What mines one case.
        load_case: Gives a case's network input, shape `(channels, *spatial)`, and its
            segmentation, shape `(1, *spatial)`.
        identifiers: Every training case.
        mined: The round; each case is stored as soon as it is done, the manifest last.
        seed: With the round's number and the case's name it decides the candidates, so they do
            not depend on the order of the cases, the number of ranks or an interruption.
        log: Takes what a user should know.
        tau_quantile: Quantile of the round's Dice gaps below which no pair is kept; the miner's τ
            is then to be 0.

    Returns:
        Summary of the whole round, the same on every rank.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
        StoreError: A case that was just written cannot be read.
        WriteError: The disk is full.
    """
    started = time.monotonic()
    ranks = Ranks.find()
    missing = _find_missing(identifiers, mined, log)
    ranks.barrier()  # every rank has looked before the first case changes
    if missing and ranks.rank == 0:
        mined.forget_manifest()
    _mine_cases(miner, load_case, missing, mined, seed, log, ranks)
    ranks.barrier()
    records, tau = _read_records(mined, identifiers), miner.tau
    if tau_quantile is not None:
        tau = quantile_tau(records, tau_quantile)
        ranks.barrier()  # every rank has read the records before the first one changes
        for number, identifier in enumerate(ranks.share(identifiers)):
            ranks.meet(number, len(identifiers))
            _drop_small_gaps(mined, identifier, records[identifier], miner, tau)
        ranks.barrier()
        records = _read_records(mined, identifiers)
    if ranks.rank == 0:
        mined.write_manifest(records)
    seconds = time.monotonic() - started
    return summarize(records, tau=tau, num_mined=len(missing), seconds=seconds)


def _find_missing(
    identifiers: Sequence[str], mined: Round, log: Callable[[str], None]
) -> list[str]:
    finished, damaged = mined.find_finished(identifiers)
    missing = [identifier for identifier in identifiers if identifier not in finished]
    if damaged:
        log(f"WARNING: files of {damaged} in {mined.folder} are damaged; they are mined again")
    if missing and finished:
        log(f"{len(finished)} of {len(identifiers)} cases are in {mined.folder} already")
    return missing


def _mine_cases(
    miner: Miner,
    load_case: LoadCase,
    missing: Sequence[str],
    mined: Round,
    seed: int,
    log: Callable[[str], None],
    ranks: Ranks,
) -> None:
    """Mine and store this rank's share of the missing cases; arguments as of `mine_round`."""
    num_pairs = 0
    mine = ranks.share(missing)
    with tqdm(mine, desc="mining", unit="case", disable=ranks.rank > 0) as progress:
        for number, identifier in enumerate(progress):
            ranks.meet(number, len(missing))
            image, segmentation = load_case(identifier)
            truth = torch.from_numpy(segmentation[0])
            miner, case = mine_within_memory(
                miner, partial(Miner.mine, image=image, segmentation=truth),
                f"{seed}/{mined.origin['round']}/{identifier}", log,
            )  # fmt: skip
            stack = stack_preferences(segmentation, *case.preferences)
            mined.write_case(identifier, stack, case.records, miner.patch_size)
            num_pairs += sum(record.rejected is not None for record in case.records)
            progress.set_postfix(pairs=num_pairs)


def _read_records(mined: Round, identifiers: Sequence[str]) -> dict[str, list[SampleRecord]]:
    records = mined.find_finished(identifiers).records
    if lost := sorted(set(identifiers) - set(records)):
        message = f"Cases were mined but cannot be read from {mined.folder}: {lost}."
        raise StoreError(message)
    return records


def _drop_small_gaps(
    mined: Round, identifier: str, records: list[SampleRecord], miner: Miner, tau: float
) -> None:
    """Take the pairs off a case whose gap is below τ; a case without any stays as it is."""
    kept = [
        replace(each, rejected=None, num_disagreeing=0) if each.gap < tau else each
        for each in records
    ]
    if kept == records:
        return
    stack = mined.open_stack(identifier)[:]
    for place, record in zip(miner.find_units(stack.shape[1:]), kept, strict=True):
        if record.rejected is None:
            stack[(slice(1, None), *place)] = 0  # chosen and rejected
    mined.write_case(identifier, stack, kept, miner.patch_size)
