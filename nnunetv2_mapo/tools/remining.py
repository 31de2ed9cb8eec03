"""Candidates of a trained model as a round of a training would find them; nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.mining import Miner, make_miner, mine_within_memory
from nnunetv2_mapo.method.rates import with_rates
from nnunetv2_mapo.method.sampling import make_sampler
from nnunetv2_mapo.tools.models import TrainedModel

T = TypeVar("T")


@dataclass
class Remining:
    """Mines cases with the seed of a round; to be used inside the `with` block of `mine_like`.

    Attributes:
        miner: With fewer windows in a forward pass from where memory ran out.
        seed: Of the round, `SEED/ROUND`.
        log: Takes what a user should know.
    """

    miner: Miner
    seed: str
    log: Callable[[str], None]

    def do(self, work: Callable[[Miner], T], identifier: str) -> T:
        """Do something with the miner and the seed of a case, such as `Miner.segment`.

        Args:
            work: What to do.
            identifier: The case.

        Raises:
            OutOfMemoryError: There is not enough memory for a single window.
        """
        self.miner, result = mine_within_memory(
            self.miner, work, f"{self.seed}/{identifier}", self.log
        )  # fmt: skip
        return result


@contextmanager
def mine_like(
    model: TrainedModel,
    config: MAPOConfig,
    device: torch.device,
    *,
    number: int = 1,
    values: Sequence[float] = (),
    log: Callable[[str], None] = print,
) -> Iterator[Remining]:
    """Give a model's network MAPO's dropout inside a `with` block, and what mines with it.

    Args:
        model: Its network's weights are the policy.
        config: Settings; only those of mining are used.
        device: Where the network lies.
        number: Of the round, from 1.
        values: Dropout rates that the round found itself; none: those of the settings.
        log: Takes what a user should know.
    """
    plan, labels = model.configuration_manager, model.labels
    dropout = StochasticDropout(
        model.network,
        labels.num_heads,
        config.granularity,
        include=config.dropout_include,
        exclude=config.dropout_exclude,
    )
    sampler = make_sampler(config, len(plan.patch_size), dropout, len(model.channel_names))
    miner = make_miner(config, model.network, sampler, labels, plan, device)
    if values and config.finds_rates:
        miner = with_rates(miner, values)
    try:
        yield Remining(miner, f"{config.seed}/{number}", log)
    finally:
        dropout.remove()
