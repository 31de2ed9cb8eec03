"""Pictures of preference pairs: image, ground truth, chosen, rejected and where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_mapo.cases import load_case
from nnunetv2_mapo.dropout import StochasticDropout
from nnunetv2_mapo.labels import Labels
from nnunetv2_mapo.mining import Miner
from nnunetv2_mapo.pictures import (
    COLOURS,
    find_slice,
    paint_classes,
    paint_heat,
    paint_image,
    vote_variance,
)
from nnunetv2_mapo.randomness import seeded
from nnunetv2_mapo.reference import REFERENCE, read_reference
from nnunetv2_mapo.sampling import fit_windows_per_forward
from nnunetv2_mapo.store import MinedRound, Round, SampleRecord
from nnunetv2_mapo.trained_model import TrainedModel

DISAGREEMENT = COLOURS.index("#d55e00") + 1  # class that is painted in red
_LARGEST_VARIANCE = 0.25  # of two classes; the brightest colour


class Sample(NamedTuple):
    """A training sample with a pair.

    Attributes:
        identifier: Case identifier.
        number: 0, or in 2D the slice.
        record: What mining found out.
    """

    identifier: str
    number: int
    record: SampleRecord

    @property
    def gap(self) -> float:
        """Dice of chosen minus Dice of rejected; 0 without a pair."""
        record = self.record
        if record.rejected is None:
            return 0.0
        return record.dice[record.chosen] - record.dice[record.rejected]


class Picture(NamedTuple):
    """A picture with its caption.

    Attributes:
        pixels: Shape `(y, x, 3)`.
        caption: Below it.
    """

    pixels: NDArray[np.uint8]
    caption: str


class PairPictures(NamedTuple):
    """Pictures of one pair.

    Attributes:
        title: Which pair.
        pictures: In the order in which they are shown.
    """

    title: str
    pictures: list[Picture]


def choose_samples(cases: dict[str, list[SampleRecord]]) -> dict[str, Sample]:
    """Samples whose pairs have the largest, the median and the smallest gap, as far as there are.

    Returns:
        Samples by what they stand for; the gap's larger middle where the number is even.
    """
    samples = [
        Sample(identifier, number, record)
        for identifier, records in sorted(cases.items())
        for number, record in enumerate(records)
        if record.rejected is not None
    ]
    samples.sort(key=lambda sample: sample.gap, reverse=True)
    if not samples:
        return {}
    places = {"largest": 0, "median": (len(samples) - 1) // 2, "smallest": len(samples) - 1}
    chosen = {f"{name} gap": samples[place] for name, place in places.items()}
    return chosen if len(samples) >= len(places) else {"largest gap": samples[0]}


@dataclass(frozen=True)
class PairPainter:
    """Paints the pairs of a training.

    Attributes:
        model: The training's model; its network is used to mine round 1 once more.
        dataset: nnU-Net's dataset of the training cases.
        device: Where the network lies.
    """

    model: TrainedModel
    dataset: Any
    device: torch.device

    def paint(self, mined: MinedRound) -> Iterator[PairPictures]:
        """Pictures of the pairs with the largest, the median and the smallest gap of a round.

        The variance of the candidates is shown where they can be found once more: in the round
        that the reference mined.
        """
        candidates_of = self._find_miner(mined)
        for name, sample in choose_samples(mined.cases).items():
            image, _ = load_case(self.dataset, self.model.label_manager, sample.identifier)
            stack = np.asarray(Round(mined.folder, {}).open_stack(sample.identifier)[:])
            candidates = candidates_of(sample.identifier, image) if candidates_of else None
            plane = sample.number
            if len(self.model.configuration_manager.patch_size) == 3:
                plane = find_slice(stack[1] != stack[2])
            title = f"{sample.identifier}: {name}, {sample.gap:.3f}"
            if stack.shape[1] > 1:
                title += f", slice {plane + 1} of {stack.shape[1]}"
            yield PairPictures(
                title,
                self._paint(
                    sample.record,
                    image[:, plane].numpy(),
                    stack[:, plane],
                    None if candidates is None else candidates[:, plane],
                ),
            )

    def _paint(
        self,
        record: SampleRecord,
        image: NDArray[np.float32],
        stack: NDArray[np.int16],
        candidates: NDArray[np.integer] | None,
    ) -> list[Picture]:
        labels, spacing = self.model.labels, self.model.configuration_manager.spacing[-2:]
        truth, chosen, rejected = stack
        truth = labels.target_map(torch.from_numpy(truth)).numpy()
        names = list(self.model.dataset_json["channel_names"].values())
        is_colour = [name.lower()[:1] for name in names] == ["r", "g", "b"]
        painted = paint_image(image if is_colour else image[:1], spacing)
        differing = chosen != rejected
        pictures = [Picture(painted, "image")]
        for name, segmentation, candidate in (
            ("ground truth", truth, None),
            ("chosen", chosen, record.chosen),
            ("rejected", rejected, record.rejected),
        ):
            classes = to_classes(segmentation, labels)
            caption = name if candidate is None else f"{name}, Dice {record.dice[candidate]:.3f}"
            pictures.append(Picture(paint_classes(painted, classes, spacing), caption))
        marked = paint_classes(painted, differing * DISAGREEMENT, spacing)
        share = record.num_disagreeing / record.num_voxels
        pictures.append(Picture(marked, f"disagreement, {share:.1%} of the voxels"))
        if candidates is not None:
            heat = paint_heat(vote_variance(candidates), _LARGEST_VARIANCE, spacing)
            pictures.append(Picture(heat, f"variance of the {len(candidates)} candidates"))
        return pictures

    def _find_miner(self, mined: MinedRound) -> Any:
        """Function that gives a case's candidates of a round; None if its policy is gone."""
        settings, policy = mined.origin["settings"], mined.origin["policy"]
        fold = self.model.folder / f"fold_{self.model.fold}"
        weights = read_reference(fold / REFERENCE, policy, self.device)
        if weights is None:
            return None
        patch_size = self.model.configuration_manager.patch_size
        rates = settings[f"rates_{len(patch_size)}d"]
        seed = f"{settings['seed']}/{mined.origin['round']}"

        def find_candidates(identifier: str, image: torch.Tensor) -> NDArray[np.integer]:
            network, labels = self.model.network, self.model.labels
            network.load_state_dict(weights)
            dropout = StochasticDropout(network, labels.num_heads, settings["granularity"])
            batch_size = self.model.configuration_manager.batch_size
            windows = fit_windows_per_forward(len(rates), batch_size)
            miner = Miner(network, dropout, labels, rates, settings["tau"], patch_size, windows,
                          self.device)  # fmt: skip
            try:
                with seeded(f"{seed}/{identifier}", self.device):
                    candidates: NDArray[np.integer] = miner.segment(image).cpu().numpy()
            finally:
                dropout.remove()
            return candidates

        return find_candidates


def name_colours(model: TrainedModel) -> list[tuple[str, str]]:
    """Name and colour of each foreground class or region of a model."""
    labels = {
        name: tuple(value) if isinstance(value, list) else (value,)
        for name, value in model.dataset_json["labels"].items()
    }
    heads = model.labels.regions or [(label,) for label in range(1, model.labels.num_heads)]
    return [
        (name, COLOURS[heads.index(value) % len(COLOURS)])
        for name, value in labels.items()
        if value in heads
    ]


def to_classes(label_map: NDArray[np.integer], labels: Labels) -> NDArray[np.integer]:
    """Class of each voxel for painting, 0 is background; of several regions the last one."""
    if labels.regions is None:
        return label_map
    classes: NDArray[np.integer] = np.frexp(label_map.astype(float))[1]  # highest bit, from 1
    return classes
