"""An expert who knows the ground truth, and answers through the page's own server."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_mapo.method.choices import CHOICE, EQUAL
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.selection import candidate_dice
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.choose.images import preprocess
from nnunetv2_mapo.tools.models import TrainedModel

RATER = "simulated"


class Shown(NamedTuple):
    """What the server shows of a question."""

    candidates: NDArray[np.int16]  # in nnU-Net's labels, in the order shown, `(K, *spatial)`
    region: NDArray[np.bool_] | None  # that is asked about, `(*spatial)`


def find_truths(folder: Path, images: Mapping[str, list[str]], ending: str) -> dict[str, Path]:
    """Ground truth of each image.

    Raises:
        CommandError: One is missing.
    """
    truths = {name: folder / f"{name}{ending}" for name in images}
    if missing := [path.name for path in truths.values() if not path.is_file()]:
        message = (
            f"{folder} lacks the ground truth of {len(missing)} of {len(images)} images: "
            f"{', '.join(missing[:5])}. --truth needs one for each, named as its image without "
            "the channel's number."
        )
        raise CommandError(message)
    return truths


def score(shown: Shown, truth: NDArray[Any], labels: Labels) -> list[float]:
    """Worth of each candidate: mean foreground Dice, of a region the voxels that are right.

    The ground truth is in nnU-Net's labels, `(*spatial)`.
    """
    segmentation = torch.from_numpy(np.asarray(truth, np.int16))
    valid = ~labels.is_ignored(segmentation)
    target = labels.target_map(segmentation)
    candidates = labels.target_map(torch.from_numpy(shown.candidates))
    if shown.region is None:
        dice: Tensor = candidate_dice(candidates, target, labels, valid)
        return dice.tolist()
    asked = torch.from_numpy(shown.region) & valid
    return [int((each == target)[asked].sum()) for each in candidates]


def choose(scores: list[float], *, is_error: bool) -> dict[str, Any]:
    """Answer of an expert: best and worst by their places, swapped in an error."""
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if scores[best] == scores[worst]:
        return {"verdict": EQUAL, "best": None, "worst": None}
    if is_error:
        best, worst = worst, best
    return {"verdict": CHOICE, "best": best, "worst": worst}


class Expert:
    """Answers every question.

    Args:
        address: Of the page.
        model: That made the candidates.
        files: Of each image.
        truths: Of each image.
        error: Probability that an answer is the wrong way round.
        seed: Decides which.
    """

    def __init__(
        self, address: str, model: TrainedModel, files: Mapping[str, list[str]],
        truths: Mapping[str, Path], *, error: float, seed: int,
    ) -> None:  # fmt: skip
        url = urlsplit(address)
        self._root, self._origin = url.path, f"http://{url.netloc}"
        self._connection = HTTPConnection(url.netloc, timeout=600)
        self._model, self._files, self._truths = model, files, truths
        self._error, self._seed = error, seed
        self._truth: tuple[str, NDArray[Any]] = ("", np.zeros(0))

    def answer_all(self) -> int:
        """Answer until nothing is asked any more; returns the number of answers."""
        client, number, times = "simulated", 0, dict[str, int]()
        self._post("join", client=client, rater=RATER, take_over=True)
        while (asked := json.loads(self._get("question", client=client)))["question"]:
            name, is_region = asked["image"], asked["is_region"]
            scores = score(self._look(asked), self._read_truth(name), self._model.labels)
            which = f"{self._seed}/{name}/{asked['box'] if is_region else ''}"
            times[which] = times.get(which, 0) + 1
            chance = random.Random(f"{which}/{times[which]}").random()
            answer = choose(scores, is_error=chance < self._error)
            if is_region:
                answer["worst"] = None  # of two
            self._post("answer", client=client, question=asked["question"], seconds=0.0, **answer)
            number += 1
        self._post("leave", client=client)
        return number

    def _look(self, asked: dict[str, Any]) -> Shown:
        """Take the candidates from the slices that a page would draw."""
        num_channels, *shape = asked["shape"]
        values = np.array(asked["values"], np.int16)
        slices = []
        for place in range(shape[0]):
            content = gzip.decompress(self._get("slice", question=asked["question"], place=place))
            slices.append(np.frombuffer(content, np.uint8).reshape(-1, *shape[1:]))
        planes = np.stack(slices, 1)[num_channels:]
        candidates = values[planes[: asked["num_shown"]]]
        return Shown(candidates, planes[-1] > 0 if asked["is_region"] else None)

    def _read_truth(self, name: str) -> NDArray[Any]:
        if self._truth[0] != name:  # regions of an image follow each other
            found = preprocess(self._model, self._files[name], self._truths[name])
            self._truth = name, found.segmentation[0]
        return self._truth[1]

    def _get(self, name: str, **query: Any) -> bytes:
        self._connection.request("GET", f"{self._root}{name}?{urlencode(query)}")
        return self._receive()

    def _post(self, name: str, **content: Any) -> None:
        headers = {"Origin": self._origin, "Content-Type": "application/json"}
        self._connection.request("POST", f"{self._root}{name}", json.dumps(content), headers)
        self._receive()

    def _receive(self) -> bytes:
        response = self._connection.getresponse()
        content = response.read()
        self._connection.close()  # while a truth is read the server would end it
        if response.status != 200:
            raise CommandError(json.loads(content)["error"])
        return content
