"""Cohen's kappa within and between raters, and what else there is to say about the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

from nnunetv2_mapo.method.choices import CHOICE, SKIP, VERDICTS, Answer
from nnunetv2_mapo.support.table import format_table


class Kappa(NamedTuple):
    """Agreement of two ratings of the same questions."""

    number: int  # questions that both have answered
    observed: float | None  # share of the same answers; None without any question
    kappa: float | None  # None where it is not defined

    def __str__(self) -> str:
        if self.observed is None:
            return "not to be had: no question was answered twice"
        agreed = f"{self.observed:.0%} of {self.number} answers are the same"
        if self.kappa is None:
            return f"not defined: every answer is the same one ({agreed})"
        return f"{self.kappa:.2f} ({agreed})"


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Kappa:
    """Cohen's kappa of two ratings, (p_o - p_e) / (1 - p_e).

    p_o is the share of the same ratings, p_e that of chance, the sum over all categories of the
    product of both ratings' shares. Not defined without any rating, and where p_e is 1.
    """
    number = len(first)
    if not number:
        return Kappa(0, None, None)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / number
    ours, theirs = Counter(first), Counter(second)
    same_by_chance = sum(ours[category] * theirs[category] for category in ours)
    if same_by_chance == number**2:
        return Kappa(number, observed, None)
    expected = same_by_chance / number**2
    return Kappa(number, observed, (observed - expected) / (1 - expected))


def rating(answer: Answer) -> Hashable:
    """Category of an answer: the candidate that it names as the best, `"equal"`, `"unusable"`."""
    return answer.best if answer.verdict == CHOICE else answer.verdict


_Key = tuple[str, str, tuple[int, ...], int | None]


def by_question(answers: Iterable[Answer], *, repeat: bool) -> dict[_Key, Hashable]:
    """Rating of each question, those that were skipped left out."""
    return {
        (each.image, each.candidates_sha256, tuple(sorted(each.shown)), each.region): rating(each)
        for each in answers
        if each.repeat == repeat and each.verdict != SKIP
    }


def compare(first: Mapping[_Key, Hashable], second: Mapping[_Key, Hashable]) -> Kappa:
    """Kappa over the questions that both have."""
    both = sorted(first.keys() & second.keys(), key=str)
    return cohens_kappa([first[key] for key in both], [second[key] for key in both])


def summarise(answers: Mapping[int, Answer]) -> str:
    """Answers of each rater, and agreement within and between raters, as text."""
    if not answers:
        return "There is no answer yet."
    of_rater: dict[str, list[Answer]] = {}
    for each in answers.values():
        of_rater.setdefault(each.rater, []).append(each)
    rows = []
    for rater, mine in of_rater.items():
        counts = Counter(each.verdict for each in mine)
        seconds = [each.seconds for each in mine if each.verdict != SKIP]
        middle = f"{median(seconds):.1f}" if seconds else "-"
        rows.append([rater, *(str(counts[verdict]) for verdict in VERDICTS), middle])
    lines = [format_table(["rater", *VERDICTS, "median seconds"], rows), ""]
    kinds = {
        kind: [each for each in answers.values() if (each.region is not None) == is_region]
        for kind, is_region in (("whole images", False), ("regions", True))
    }
    for kind, some in kinds.items():
        if not some:
            continue
        lines.append(f"Cohen's kappa of the candidate named best, {kind}:")
        for rater in of_rater:
            mine = [each for each in some if each.rater == rater]
            kappa = compare(by_question(mine, repeat=False), by_question(mine, repeat=True))
            lines.append(f"  {rater}, first and second time: {kappa}")
        for first, second in combinations(of_rater, 2):
            theirs = (
                by_question((each for each in some if each.rater == rater), repeat=False)
                for rater in (first, second)
            )
            lines.append(f"  {first} and {second}: {compare(*theirs)}")
        if len(of_rater) == 1:
            lines.append("  between raters: not to be had, there is one rater")
    return "\n".join(lines)
