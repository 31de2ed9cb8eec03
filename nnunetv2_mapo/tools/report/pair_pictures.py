"""Pictures of preference pairs: image, ground truth, chosen, rejected and where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_mapo.method.cases import load_case
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.reference import REFERENCE, read_reference
from nnunetv2_mapo.method.store import MinedRound, Round, SampleRecord, StoreError
from nnunetv2_mapo.method.windows import find_units
from nnunetv2_mapo.tools.models import TrainedModel
from nnunetv2_mapo.tools.remining import Remining, mine_like
from nnunetv2_mapo.tools.report.pictures import (
    COLOURS,
    candidate_variance,
    find_slice,
    paint_classes,
    paint_heat,
    paint_image,
)

DISAGREEMENT = COLOURS.index("#d55e00") + 1  # class that is painted in red
_LARGEST_VARIANCE = 0.25  # of two classes; the brightest colour


class Sample(NamedTuple):
    """A training sample with a pair.

    Attributes:
        identifier: Case identifier.
        number: Place among the samples of the case.
        record: What mining found out.
    """

    identifier: str
    number: int
    record: SampleRecord

    @property
    def gap(self) -> float:
        """Dice of chosen minus Dice of rejected; 0 without a pair."""
        return self.record.dice_chosen - self.record.dice_rejected if self.record.has_pair else 0.0


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
    """Of each case the pair with the largest gap; of these the largest, median and smallest gap.

    Returns:
        Samples of different cases by what they stand for, as many as there are; the median is the
        larger middle where the number is even.
    """
    samples = [
        max(
            (Sample(identifier, number, record) for number, record in enumerate(records)),
            key=lambda sample: sample.gap,
        )
        for identifier, records in sorted(cases.items())
    ]
    samples = sorted(
        (sample for sample in samples if sample.record.has_pair),
        key=lambda sample: sample.gap,
        reverse=True,
    )
    chosen = {"largest gap": 0, "median gap": (len(samples) - 1) // 2, "smallest gap": -1}
    if len(samples) < len(chosen):
        return dict(zip(("largest gap", "smallest gap"), samples, strict=False))
    return {name: samples[place] for name, place in chosen.items()}


@dataclass(frozen=True)
class PairPainter:
    """Paints the pairs of a training.

    Attributes:
        model: The training's model; its network is used to mine a round once more.
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
        with self._remine(mined) as remining:
            for name, sample in choose_samples(mined.cases).items():
                image, _ = load_case(self.dataset, self.model.label_manager, sample.identifier)
                candidates = None
                if remining is not None:
                    work = partial(Miner.segment, image=image)
                    candidates = remining.do(work, sample.identifier).cpu().numpy()
                stack = read_stack(mined, sample.identifier)
                place = self._find_place(mined, sample, stack)
                yield self._paint_slice(name, sample, place, image.numpy(), stack, candidates)

    def _find_place(
        self, mined: MinedRound, sample: Sample, stack: NDArray[np.int16]
    ) -> tuple[Any, ...]:
        """The sample's part of the slice in which its pair differs most."""
        config = MAPOConfig.from_dict(mined.origin["settings"])
        patch_size = self.model.configuration_manager.patch_size
        unit = config.selection_unit(len(patch_size))
        units = find_units(stack.shape[1:], patch_size, unit, config.tile_step_size)
        place = units[sample.number]
        if isinstance(place[0], int):
            return place
        differing = np.zeros(stack.shape[1:], bool)
        differing[place] = (stack[1] != stack[2])[place]
        return (find_slice(differing), *place[1:])

    def _paint_slice(
        self,
        name: str,
        sample: Sample,
        place: tuple[Any, ...],
        image: NDArray[np.float32],
        stack: NDArray[np.int16],
        candidates: NDArray[np.integer] | None,
    ) -> PairPictures:
        """Pictures of a place, which lies in one slice."""
        title = f"{sample.identifier}: {name}, {sample.gap:.3f}"
        if stack.shape[1] > 1:
            title += f", slice {place[0] + 1} of {stack.shape[1]}"
        part = (slice(None), *place)
        shown = None if candidates is None else candidates[part]
        return PairPictures(title, self._paint(sample.record, image[part], stack[part], shown))

    def _paint(
        self,
        record: SampleRecord,
        image: NDArray[np.float32],
        stack: NDArray[np.int16],
        candidates: NDArray[np.integer] | None,
    ) -> list[Picture]:
        labels, spacing = self.model.labels, self.model.configuration_manager.spacing[-2:]
        truth, chosen, rejected = stack[:3]
        truth = labels.target_map(torch.from_numpy(truth)).numpy()
        names = [name.lower()[:1] for name in self.model.channel_names]
        is_colour = names == ["r", "g", "b"]
        painted = paint_image(image if is_colour else image[:1], spacing)
        differing = chosen != rejected
        pictures = [Picture(painted, "image")]
        for caption, segmentation in (
            ("ground truth", truth),
            (f"chosen, Dice {record.dice_chosen:.3f}", chosen),
            (f"rejected, Dice {record.dice_rejected:.3f}", rejected),
        ):
            classes = to_classes(segmentation, labels)
            pictures.append(Picture(paint_classes(painted, classes, spacing), caption))
        marked = paint_classes(painted, differing * DISAGREEMENT, spacing)
        share = record.num_disagreeing / record.num_voxels
        pictures.append(Picture(marked, f"disagreement, {share:.1%} of the voxels"))
        if candidates is not None:
            heat = paint_heat(candidate_variance(candidates), _LARGEST_VARIANCE, spacing)
            pictures.append(Picture(heat, f"variance of the {len(candidates)} candidates"))
        return pictures

    @contextmanager
    def _remine(self, mined: MinedRound) -> Iterator[Remining | None]:
        """What mines a round once more; None if its policy, the network's weights, is gone."""
        settings, policy = mined.origin["settings"], mined.origin["policy"]
        fold = self.model.folder / f"fold_{self.model.fold}"
        weights = read_reference(fold / REFERENCE, policy, self.device)
        if weights is None:
            yield None
            return
        self.model.network.load_state_dict(weights)
        config, number = MAPOConfig.from_dict(settings), mined.origin["round"]
        with mine_like(
            self.model, config, self.device, number=number, values=mined.values
        ) as remining:
            yield remining


def read_stack(mined: MinedRound, identifier: str) -> NDArray[np.int16]:
    """Channels of a case, see `store.stack_preferences`.

    Raises:
        StoreError: Its file is missing or damaged.
    """
    stored = Round(mined.folder, mined.origin)
    if identifier not in stored.find_finished([identifier]).records:
        message = f"{stored.path(identifier)} is missing or damaged."
        raise StoreError(message)
    stack: NDArray[np.int16] = np.asarray(stored.open_stack(identifier)[:])
    return stack


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
