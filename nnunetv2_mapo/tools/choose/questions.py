"""Which question comes next, and in which order its candidates are shown."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nnunetv2_mapo.method.choices import SKIP, Answer
from nnunetv2_mapo.tools.choose.folder import Kept

REPEAT_AFTER = 5  # questions that are answered between the two times that the same is asked
Key = tuple[str, int | None]  # image and region, the same for both times


class Question(NamedTuple):
    """What an expert is asked."""

    image: str
    region: int | None  # number in `disputed_regions` of the two that are shown; None: the image
    shown: tuple[int, ...]  # candidates in the order in which they are shown
    repeat: bool

    @property
    def key(self) -> Key:
        """See `Key`."""
        return self.image, self.region


@dataclass(frozen=True)
class Asking:
    """How it is asked.

    Attributes:
        regions: One disputed region at a time instead of the whole image.
        repeat: Share of the questions that are asked twice.
        seed: Decides order and repetition.
    """

    regions: bool
    repeat: float
    seed: int

    def order(self, ready: Mapping[str, Kept]) -> list[Key]:
        """Questions about all images that are ready, the most informative image first."""
        names = sorted(ready, key=lambda name: (-ready[name].disagreement, name))
        if not self.regions:
            return [(name, None) for name in names]
        return [(name, number) for name in names for number in range(ready[name].num_regions)]

    def choose_next(
        self,
        ready: Mapping[str, Kept],
        mine: Sequence[Answer],
        asked: Collection[Key],
        rater: str,
        *,
        is_complete: bool,
    ) -> Question | None:
        """A repetition that is due, else the most informative question without an answer.

        Args:
            ready: Images that can be asked about.
            mine: Answers of the rater, in their order.
            asked: Questions that are on the page already.
            rater: Who is asked.
            is_complete: Whether nothing more becomes ready: then a repetition need not wait.
        """
        first = {key_of(each): place for place, each in enumerate(mine) if not each.repeat}
        done = {key_of(each) for each in mine if each.repeat} | set(asked)
        keys = self.order(ready)
        fresh = [key for key in keys if key not in first and key not in asked]
        wait = 0 if is_complete and not fresh else REPEAT_AFTER
        for key in keys:
            is_due = key in first and key not in done and len(mine) - first[key] >= wait
            if is_due and mine[first[key]].verdict != SKIP and self._is_repeated(key):
                return self._make(key, ready, rater, repeat=True)
        return self._make(fresh[0], ready, rater, repeat=False) if fresh else None

    def _is_repeated(self, key: Key) -> bool:
        return random.Random(f"{self.seed}/{key[0]}/{key[1]}").random() < self.repeat

    def _make(self, key: Key, ready: Mapping[str, Kept], rater: str, *, repeat: bool) -> Question:
        """A question; its candidates are shown in an order of chance, a repetition's in another."""
        name, region = key
        kept = ready[name]
        first = [*range(kept.num_candidates)] if region is None else [*kept.widest]
        shown, seed = [*first], f"{self.seed}/{name}/{region}"
        random.Random(f"{seed}/False/{rater}").shuffle(first)
        if not repeat:
            return Question(name, region, tuple(first), repeat)
        chance = random.Random(f"{seed}/True/{rater}")
        chance.shuffle(shown)
        while shown == first:
            chance.shuffle(shown)
        return Question(name, region, tuple(shown), repeat)


def key_of(answer: Answer) -> Key:
    """Key of the question that was answered."""
    return answer.image, answer.region
