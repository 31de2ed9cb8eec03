"""Experts' choices on images that nobody has segmented: their record, and the pairs they make.

A folder of choices holds

- `model.json`: the format's version and the model that made the candidates;
- `images/`: a dataset of nnU-Net's, the preprocessed images, whose segmentation channels are the
  candidates' label maps, the plain prediction first;
- `choices.jsonl`: one answer a line, only ever appended to.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from nnunetv2_mapo.method.store import WEIGHT_ONE
from nnunetv2_mapo.support.errors import InputError

VARIABLE = "nnUNet_mapo_choices"  # names the folder that a training learns from
VERSION = 1
MODEL, RECORD, IMAGES = "model.json", "choices.jsonl", "images"
CHOICE, EQUAL, UNUSABLE, SKIP = VERDICTS = ("choice", "equal", "unusable", "skip")
NUM_REGIONS, LEAST_REGION = 3, 4  # disputed regions of an image that are asked about; in voxels


class ChoicesError(InputError):
    """A folder of choices that cannot be used; the message says why and what to do."""


HOW_TO_MAKE = (
    "Make one with nnUNetv2_mapo choose MODEL_FOLDER -i UNLABELLED -o FOLDER, and let "
    f"{VARIABLE} name FOLDER."
)


def read_model(folder: Path) -> dict[str, Any]:
    """Content of `model.json`: which model made the candidates.

    Raises:
        ChoicesError: There is none, it is damaged, or of a later version.
    """
    path = folder / MODEL
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        version = content["version"]
    except FileNotFoundError as error:
        message = f"{folder} is no folder of choices: {path} is missing. {HOW_TO_MAKE}"
        raise ChoicesError(message) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path} is damaged ({error}). {HOW_TO_MAKE}"
        raise ChoicesError(message) from error
    if version != VERSION:
        message = (
            f"{path} has version {version}, this package reads version {VERSION}: install the "
            "package that wrote it."
        )
        raise ChoicesError(message)
    return content


@dataclass(frozen=True)
class Answer:
    """What a rater said about candidates of an image."""

    image: str  # identifier in `images/`
    image_sha256: str  # of the preprocessed image's voxels
    candidates_sha256: str  # of all the candidates' voxels
    shown: tuple[int, ...]  # candidates in the order in which they were shown
    verdict: str  # one of `VERDICTS`
    rater: str
    seconds: float  # from the picture to the answer
    time: str  # when, ISO 8601 with time zone
    best: int | None = None  # candidates, of a choice; worst is None where only best was named
    worst: int | None = None
    region: int | None = None  # number in `disputed_regions` of the two that were shown; None: all
    repeat: bool = False  # whether the same was asked before

    @property
    def rejected(self) -> int | None:
        """The worst candidate; of two the other one."""
        if self.worst is None and self.best is not None and len(self.shown) == 2:
            return next(each for each in self.shown if each != self.best)
        return self.worst


def append_answer(folder: Path, answer: Answer) -> int:
    """Put an answer on the disk, behind the others; returns the number of its line, from 0."""
    return _append(folder, {"version": VERSION, **asdict(answer)})


def append_undo(folder: Path, number: int) -> None:
    """Take the answer in a line back; the line stays."""
    _append(folder, {"version": VERSION, "undo": number})


def _append(folder: Path, content: dict[str, Any]) -> int:
    path = folder / RECORD
    with path.open("ab+") as file:
        file.seek(0)
        before = file.read()
        if before and not before.endswith(b"\n"):  # half a line, of a crash
            file.write(b"\n")
        file.write(json.dumps(content).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return len(before.splitlines())


def name_files(image: str) -> str:
    """Files of an image in `images/`, in words."""
    return f"{image}.b2nd, {image}_seg.b2nd and {image}.pkl"


def read_answers(folder: Path) -> dict[int, Answer]:
    """Answers that were not taken back, by the number of their line.

    A line that a crash has cut in half is left out: its answer was never acknowledged.

    Raises:
        ChoicesError: A line is of a later version, or is no answer.
    """
    path, answers = folder / RECORD, dict[int, Answer]()
    names = {each.name for each in fields(Answer)}
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if content.get("version") != VERSION:
            message = (
                f"{path}, line {number + 1} has version {content.get('version')}, this package "
                f"reads version {VERSION}: install the package that wrote it."
            )
            raise ChoicesError(message)
        if "undo" in content:
            answers.pop(content["undo"], None)
            continue
        try:
            known = {name: value for name, value in content.items() if name in names}
            answers[number] = Answer(**{**known, "shown": tuple(content["shown"])})
        except (KeyError, TypeError) as error:
            message = (
                f"{path}, line {number + 1} is no answer ({error}). Empty that line, "
                "but keep it: lines are counted."
            )
            raise ChoicesError(message) from error
    return answers


def disputed_regions(first: NDArray[Any], second: NDArray[Any]) -> list[NDArray[np.bool_]]:
    """Masks of the largest connected parts in which two label maps differ, the largest first.

    At most `NUM_REGIONS`, of at least `LEAST_REGION` voxels; the same at each call.
    """
    parts = cc3d.connected_components((first != second).astype(np.uint8))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest = np.argsort(-sizes, kind="stable")[:NUM_REGIONS]
    return [parts == part for part in largest if sizes[part] >= LEAST_REGION]


def prefer(answers: Iterable[Answer]) -> tuple[int, int] | None:
    """Chosen and rejected candidate by all answers about a whole image, or about one region.

    There is a pair only if more answers name a best than say equal or unusable. Chosen is what most
    name the best, alone or with a worst; there is none if another is named as often, or if as many
    call it the worst. Rejected is what most others call the worst; of equals the one that fewer
    call the best, then the first; there is none if nobody named a worst.
    """
    best, worst, num_against = Counter[int](), Counter[int](), 0
    for answer in answers:
        num_against += answer.verdict in (EQUAL, UNUSABLE)
        if answer.verdict == CHOICE and answer.best is not None:
            best[answer.best] += 1
            if answer.rejected is not None:
                worst[answer.rejected] += 1
    if sum(best.values()) <= num_against:
        return None
    chosen, num_votes = best.most_common(1)[0]
    rivals = [num for each, num in best.items() if each != chosen]
    others = [each for each in worst if each != chosen]
    if not others or num_votes <= max(worst[chosen], *rivals, 0):
        return None
    return chosen, max(others, key=lambda each: (worst[each], -best[each]))


def pair_of(
    candidates: NDArray[Any], answers: Sequence[Answer]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int16]] | None:
    """Chosen, rejected and weight of an image by all the answers about it; None without any.

    Args:
        candidates: Label maps, `(K, *spatial)`, the plain prediction first.
        answers: About this image.

    Returns:
        Two label maps and the weight of each voxel in hundredths, each `(*spatial)`. Where only
        regions were judged, chosen and rejected differ in these alone.
    """
    chosen = rejected = candidates[0]
    if whole := prefer(answer for answer in answers if answer.region is None):
        chosen, rejected = candidates[whole[0]], candidates[whole[1]]
    chosen, rejected = chosen.copy(), rejected.copy()
    for mask, (better, worse) in _judged_regions(candidates, answers):
        chosen[mask], rejected[mask] = candidates[better][mask], candidates[worse][mask]
    differs = chosen != rejected
    return (chosen, rejected, (differs * WEIGHT_ONE).astype(np.int16)) if differs.any() else None


def _judged_regions(
    candidates: NDArray[Any], answers: Iterable[Answer]
) -> Iterator[tuple[NDArray[np.bool_], tuple[int, int]]]:
    """Mask of each region that was judged, with its better and its worse candidate."""

    def question(answer: Answer) -> tuple[list[int], int]:
        return sorted(answer.shown), answer.region if answer.region is not None else -1

    about_regions = sorted((each for each in answers if each.region is not None), key=question)
    for ((first, second), number), same in groupby(about_regions, key=question):
        if pair := prefer(same):
            yield disputed_regions(candidates[first], candidates[second])[number], pair
