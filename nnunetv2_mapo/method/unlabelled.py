"""What a training makes of the images in a folder of choices: pairs, or labels.

The stack of an image is `[segmentation, chosen, rejected, weight]` where its pair is learnt from,
or `[segmentation]` where that takes the place of an outline. It lies in the training's own folder:
the folder of choices may grow meanwhile.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_mapo.method.choices import IMAGES, Answer, pair_of
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.store import Round, stack_preferences

FOLDER = "choices"  # of the stacks, beside the rounds
NUM_PLACES = 1000  # voxels of an image that patches are centred on
_LEARNT = -1  # nnU-Net's loader takes places by class: all of an image are of one that is no label


@dataclass(frozen=True)
class UnlabelledImages:
    """Images without outlines that a training learns from.

    Attributes:
        dataset: nnU-Net's, of all images in the folder of choices.
        stacks: Where the stack of each one lies; its cases are those that are learnt from.
        places: Of each of these, voxels `(n, 4)` worth a patch around them, in nnU-Net's order:
            channel, then the three axes.
        has_pairs: Whether chosen, rejected and weight lie behind the segmentation.
    """

    dataset: Any
    stacks: Round
    places: Mapping[str, NDArray[np.int64]]
    has_pairs: bool

    def __len__(self) -> int:
        return len(self.places)

    def as_training_cases(self, dataset: Any, labels: Sequence[int]) -> Any:
        """Copy of a trainer's dataset of training cases that has these images instead.

        `labels` are all that nnU-Net's label manager knows.
        """
        other = copy.copy(dataset)
        other.identifiers = list(self.places)
        other.load_case = partial(_load_case, self, labels)
        return other


def _load_case(
    images: UnlabelledImages, labels: Sequence[int], identifier: str, *_args: Any, **_kwargs: Any
) -> tuple[Any, ...]:
    """As nnU-Net's: image, segmentation stack, previous stage's segmentation, properties."""
    data, _, previous, properties = images.dataset.load_case(identifier)
    places, annotated = images.places[identifier], (-1, *labels)  # nnU-Net's key of all labels
    locations = {_LEARNT: places, annotated: places}
    stack = images.stacks.open_stack(identifier)
    return data, stack, previous, {**properties, "class_locations": locations}


def label_loss(
    network: nn.Module, batch: Mapping[str, Any], base: nn.Module, device: torch.device
) -> Tensor:
    """The base trainer's loss of images whose label is what was chosen or predicted.

    Args:
        network: As it is trained, its dropout off.
        batch: nnU-Net's: `data` of shape `(B, channels, *patch)`, and `target` of shape
            `(B, 1, *patch)`, or a list of these, one of each scale of deep supervision.
        base: Takes the network's output and such a target.
        device: Where the network lies.

    Returns:
        A single number.
    """
    data, target = batch["data"].to(device, non_blocking=True), batch["target"]
    if isinstance(target, list):
        target = [each.to(device, non_blocking=True) for each in target]
    else:
        target = target.to(device, non_blocking=True)
    loss: Tensor = base(network(data), target)
    return loss


def open_images(folder: Path) -> Any:
    """nnU-Net's dataset of all images in a folder of choices."""
    images = str(folder / IMAGES)
    return infer_dataset_class(images)(images)


def settle(
    dataset: Any,
    answers: Sequence[Answer],
    use: str,
    stacks: Round,
    labels: Labels,
    patch_size: Sequence[int],
) -> UnlabelledImages:
    """Make the stack of each image from its candidates and the answers about it.

    Args:
        dataset: Of `open_images`.
        answers: Of all images in it.
        use: `"preferences"` and `"chosen"` leave out images of which no candidate is preferred;
            `"pseudo-label"` takes the plain prediction of each image, whatever was answered.
        stacks: Where they go; those of this origin that are there already stay.
        labels: Meaning of the network's heads.
        patch_size: Of the configuration in voxels.
    """
    about = defaultdict[str, list[Answer]](list)
    for answer in answers:
        about[answer.image].append(answer)
    there, places = stacks.find_finished(dataset.identifiers).records, {}
    for identifier in sorted(dataset.identifiers):
        if use != "pseudo-label" and identifier not in about:
            continue
        if identifier in there:
            stack = stacks.open_stack(identifier)[:]
        else:
            candidates = dataset.load_case(identifier)[1][:]
            made = _make_stack(candidates, about[identifier], use, labels)
            if made is None:
                continue
            stack = made
            stacks.write_case(identifier, stack, [], patch_size)
        places[identifier] = _find_places(stack, identifier)
    return UnlabelledImages(dataset, stacks, places, has_pairs=use == "preferences")


def _make_stack(
    candidates: NDArray[Any], answers: Sequence[Answer], use: str, labels: Labels
) -> NDArray[np.int16] | None:
    if use == "pseudo-label":
        return candidates[:1].astype(np.int16)
    pair = pair_of(candidates, answers)
    if pair is None:
        return None
    chosen, rejected, weight = pair
    if use == "chosen":
        return chosen[None].astype(np.int16)
    maps = (labels.target_map(torch.from_numpy(each)).numpy() for each in (chosen, rejected))
    return stack_preferences(candidates[:1], *maps, weight)


def _find_places(stack: NDArray[np.int16], identifier: str) -> NDArray[np.int64]:
    """Disagreement voxels of a pair, or foreground voxels of a label, some of them at random."""
    is_worth = stack[1] != stack[2] if len(stack) > 1 else stack[0] > 0
    places = np.argwhere(is_worth)
    generator = np.random.default_rng(list(identifier.encode()))
    some = generator.permutation(len(places))[:NUM_PLACES]
    return np.pad(places[some], ((0, 0), (1, 0)))
