"""One expert at a time, in one page at a time, and what becomes of the answers."""

from __future__ import annotations

import math
import secrets
import threading
import time
from datetime import datetime
from statistics import median
from typing import Any

from nnunetv2_mapo.method.choices import (
    CHOICE,
    SKIP,
    VERDICTS,
    Answer,
    append_answer,
    append_undo,
    read_answers,
)
from nnunetv2_mapo.support.errors import MAPOError
from nnunetv2_mapo.tools.choose.preparation import Preparation
from nnunetv2_mapo.tools.choose.questions import Asking, Question, key_of

SILENCE = 15.0  # seconds without a sign of life after which a page counts as closed


class SessionError(MAPOError):
    """A request that the session refuses.

    Attributes:
        status: HTTP's.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Session:
    """Asks one expert at a time, in one page at a time; safe to use from several threads."""

    def __init__(self, preparation: Preparation, asking: Asking) -> None:
        self.preparation, self.asking = preparation, asking
        self.folder = preparation.folder
        self.rater = ""
        self._lock = threading.RLock()
        self._answers = read_answers(self.folder.path)
        self._holder, self._seen = "", -math.inf
        self._asked: dict[str, Question] = {}
        self._current = self._upcoming = self._last = ""
        if stale := sorted({each.image for each in self._answers.values() if not self._fits(each)}):
            preparation.log(
                f"Answers about {', '.join(stale)} are about candidates that are not there: they "
                "count only if the same are made again; else these images are asked about anew."
            )

    # Pages ----------------------------------------------------------------------------------------

    @property
    def last_rater(self) -> str:
        """Who was asked last, or gave the last answer; empty if nobody did."""
        return self.rater or next((each.rater for each in reversed(self._answers.values())), "")

    def join(self, client: str, rater: str, *, take_over: bool = False) -> None:
        """Let a page ask for a rater.

        Raises:
            SessionError: Another page does, and is not to be taken over.
        """
        with self._lock:
            is_alive = time.monotonic() - self._seen < SILENCE
            if self._holder not in ("", client) and is_alive and not take_over:
                message = f"{self.rater} judges in another page."
                raise SessionError(423, message)
            if not rater.strip() or not client:
                message = "A name is needed."
                raise SessionError(400, message)
            self._holder, self._seen = client, time.monotonic()
            if rater.strip() != self.rater:
                self.rater = rater.strip()[:100]
                self._current = self._upcoming = self._last = ""

    def leave(self, client: str) -> None:
        """Free the session for another page."""
        with self._lock:
            if client == self._holder:
                self._seen = -math.inf

    def check(self, client: str) -> None:
        """Note that a page is there.

        Raises:
            SessionError: Another one has taken over.
        """
        with self._lock:
            if client != self._holder:
                message = "Another page has taken over." if self._holder else "Say who you are."
                raise SessionError(423, message)
            self._seen = time.monotonic()

    # Questions ------------------------------------------------------------------------------------

    def ask(self) -> tuple[str, str]:
        """Identifiers of the question that is to be answered, and of the next; empty: none yet."""
        with self._lock:
            if not self._current:
                self._current = self._upcoming or self._choose()
                self._upcoming = ""
            if self._current and not self._upcoming:
                self._upcoming = self._choose()
            return self._current, self._upcoming

    def find(self, identifier: str) -> Question:
        """A question that was asked.

        Raises:
            SessionError: It was not.
        """
        with self._lock:
            if identifier not in self._asked:
                message = "There is no such question."
                raise SessionError(404, message)
            return self._asked[identifier]

    def _choose(self) -> str:
        """Identifier of a question that is open; empty if there is none."""
        question = self._find_next()
        return self._remember(question) if question else ""

    def _find_next(self) -> Question | None:
        return self.asking.choose_next(
            dict(self.preparation.ready),
            [*self._find_mine().values()],
            [self._asked[each].key for each in (self._current, self._upcoming) if each],
            self.rater,
            is_complete=self.preparation.is_done,
        )

    def _remember(self, question: Question) -> str:
        identifier = secrets.token_hex(8)  # says nothing about the order
        self._asked[identifier] = question
        return identifier

    # Answers --------------------------------------------------------------------------------------

    def answer(
        self, identifier: str, verdict: str, best: int | None, worst: int | None, seconds: float
    ) -> None:
        """Put an answer on the disk; the same once more changes nothing.

        Args:
            identifier: Of the question that is to be answered.
            verdict: One of `VERDICTS`.
            best: Place of the best among the shown ones; of a choice.
            worst: The same of the worst, if it was named.
            seconds: From the picture to the answer.

        Raises:
            SessionError: It is no answer to that question.
        """
        with self._lock:
            if identifier == self._last:
                return
            if identifier != self._current:
                message = "This question is not open any more."
                raise SessionError(409, message)
            question = self._asked[identifier]
            check_answer(len(question.shown), verdict, best, worst, seconds)
            kept = self.preparation.ready[question.image]
            answer = Answer(
                image=question.image,
                image_sha256=kept.image_sha256,
                candidates_sha256=kept.candidates_sha256,
                shown=question.shown,
                verdict=verdict,
                rater=self.rater,
                seconds=round(seconds, 2),
                time=datetime.now().astimezone().isoformat(timespec="seconds"),
                best=None if best is None else question.shown[best],
                worst=None if worst is None else question.shown[worst],
                region=question.region,
                repeat=question.repeat,
            )
            self._answers[append_answer(self.folder.path, answer)] = answer
            self._last, self._current = identifier, ""

    def _fits(self, answer: Answer) -> bool:
        """Whether an answer is about the image and the candidates that are there."""
        kept = self.preparation.ready.get(answer.image)
        return kept is not None and kept[:2] == (answer.image_sha256, answer.candidates_sha256)

    def _find_mine(self) -> dict[int, Answer]:
        """The rater's answers that count, by the number of their line."""
        return {
            line: each
            for line, each in self._answers.items()
            if each.rater == self.rater and self._fits(each)
        }

    def undo(self) -> None:
        """Take this rater's last answer back and ask its question again.

        Raises:
            SessionError: There is none.
        """
        with self._lock:
            mine = [*self._find_mine()]
            if not mine:
                message = "There is no answer to take back."
                raise SessionError(409, message)
            append_undo(self.folder.path, mine[-1])
            answer = self._answers.pop(mine[-1])
            question = Question(answer.image, answer.region, answer.shown, answer.repeat)
            others = [each for each in (self._current, self._upcoming) if each]
            others = [each for each in others if self._asked[each].key != question.key]
            self._current, self._last = self._remember(question), ""
            self._upcoming = others[0] if others else ""

    def describe(self) -> dict[str, Any]:
        """Progress of the rater, for the page."""
        with self._lock:
            preparation = self.preparation
            mine = [*self._find_mine().values()]
            keys = self.asking.order(dict(preparation.ready))
            done = {key_of(each) for each in mine if not each.repeat}
            seconds = [each.seconds for each in mine if each.verdict != SKIP]
            return {
                "rater": self.rater,
                "answered": sum(key in done for key in keys),
                "total": len(keys),
                "waiting": preparation.num_waiting,
                "left_out": preparation.left_out,
                "failure": str(preparation.failure or ""),
                "seconds": round(median(seconds), 1) if seconds else None,
                "can_undo": bool(mine),
                "finished": preparation.is_done
                and not (self._current or self._upcoming or self._find_next()),
            }


def check_answer(
    num_shown: int, verdict: str, best: int | None, worst: int | None, seconds: float
) -> None:
    """Refuse what is no answer to a question with so many candidates.

    Raises:
        SessionError: It is none.
    """
    places = [*range(num_shown), None]
    is_choice = verdict == CHOICE
    is_valid = (
        verdict in VERDICTS
        and {type(best), type(worst)} <= {int, type(None)}  # True is 1, too
        and best in places
        and worst in places
        and (best is not None) == is_choice
        and (worst is None or (is_choice and worst != best))
        and 0 <= seconds < math.inf
    )
    if not is_valid:
        message = (
            f"verdict={verdict!r}, best={best!r}, worst={worst!r}, seconds={seconds!r} is no "
            f"answer: a choice names best, and may name worst, by their places 0 to "
            f"{num_shown - 1}; {', '.join(VERDICTS[1:])} name none."
        )
        raise SessionError(400, message)
