"""May a training learn from a folder of choices? Its model, its images, and the answers."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_mapo.guards.base_checkpoint import compare_plans, have_same_heads
from nnunetv2_mapo.guards.known_cases import KnownCases
from nnunetv2_mapo.method.cases import channels_of
from nnunetv2_mapo.method.choices import (
    HOW_TO_MAKE,
    IMAGES,
    RECORD,
    VARIABLE,
    Answer,
    ChoicesError,
    name_files,
    read_answers,
    read_model,
)
from nnunetv2_mapo.method.rounds import Ranks
from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.method.unlabelled import FOLDER, UnlabelledImages, open_images, settle
from nnunetv2_mapo.support.files import hash_array, hash_json


@dataclass(frozen=True)
class Choices:
    """A folder of choices that a training can learn from.

    Attributes:
        folder: Absolute.
        answers: Those that were not taken back.
        dataset: nnU-Net's, of its images.
    """

    folder: Path
    answers: list[Answer]
    dataset: Any

    @property
    def origin(self) -> dict[str, Any]:
        """JSON form of what was said, by its fingerprint."""
        said = [[vars(answer)[name] for name in sorted(vars(answer))] for answer in self.answers]
        return {
            "folder": str(self.folder),
            "num_images": len(self.dataset.identifiers),
            "num_answers": len(self.answers),
            "answers": hash_json(said),
        }

    def __str__(self) -> str:
        verdicts = Counter(answer.verdict for answer in self.answers)
        counted = ", ".join(f"{count} {name}" for name, count in sorted(verdicts.items()))
        raters = sorted({answer.rater for answer in self.answers})
        by = f" by {', '.join(raters)}" if raters else ""
        return f"{len(self.answers)} answers{by} ({counted or 'none'}) in {self.folder / RECORD}"


def named_folder() -> Path | None:
    """Folder that the environment names, if it does."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else None


def learn_from_choices(trainer: Any, validation: Any, folder: Path) -> UnlabelledImages:
    """Open the choices that the environment names, check them, and make them ready to train on.

    Args:
        trainer: Initialised.
        validation: nnU-Net's dataset of its validation cases.
        folder: Of the trainer's, for what is made of the images.

    Raises:
        ChoicesError: As of `open_choices`, or there is nothing to learn from.
    """
    choices, use = open_choices(trainer), trainer.mapo.unlabelled
    if trainer.fold != "all":  # whose validation cases are training cases
        check_no_validation_case(choices, validation)
    stacks = Round(folder / FOLDER, {"use": use, **choices.origin})
    patch_size = trainer.configuration_manager.patch_size
    for rank in (0, trainer.local_rank):  # the others find what the first one has made
        if rank == trainer.local_rank:
            images = settle(
                choices.dataset, choices.answers, use, stacks, trainer.labels, patch_size
            )
        Ranks.find().gather(None)
    require_images(choices, images)
    num_images = len(choices.dataset.identifiers)
    trainer.print_to_log_file(f"MAPO: {choices}; {len(images)} of {num_images} images are used")
    return images


def open_choices(trainer: Any) -> Choices:
    """Open the folder that the environment names for an initialised trainer.

    Raises:
        ChoicesError: It is missing, damaged, of other images or labels, has no image, or has
            images that the training is validated on.
    """
    folder = named_folder()
    if folder is None:
        name = type(trainer).__name__
        message = f"{name} learns from choices, but {VARIABLE} is not set. {HOW_TO_MAKE}"
        raise ChoicesError(message)
    _check_model(trainer, folder, read_model(folder))
    if not any((folder / IMAGES).glob("*.pkl")):
        message = f"{folder / IMAGES} holds no image. {HOW_TO_MAKE}"
        raise ChoicesError(message)
    dataset = open_images(folder)
    said = [*read_answers(folder).values()]
    answers = _find_fitting(dataset, said)
    if len(answers) < len(said):
        names = sorted({each.image for each in {*said} - {*answers}})
        trainer.print_to_log_file(
            f"MAPO: {len(said) - len(answers)} of {len(said)} answers are left out: their images "
            f"or candidates are not those in {folder / IMAGES} any more: {', '.join(names)}"
        )
    return Choices(folder, answers, dataset)


def _check_model(trainer: Any, folder: Path, model: dict[str, Any]) -> None:
    if trainer.is_cascaded:
        message = (
            f"{trainer.configuration_name} needs the segmentations of a previous stage, which "
            "images that nobody has segmented do not have: train another configuration."
        )
        raise ChoicesError(message)
    differences = compare_plans(
        PlansManager(model["plans"]),
        trainer.plans_manager,
        (model["configuration"], trainer.configuration_name),
        without_network=True,
    )
    described, own = model["dataset_json"], trainer.dataset_json
    if not have_same_heads(described, own):
        differences += f"{differences and '; '}labels are {described['labels']} there, "
        differences += f"{own['labels']} here"
    if channels_of(described) != channels_of(own):
        differences += f"{differences and '; '}channels are {channels_of(described)} there, "
        differences += f"{channels_of(own)} here"
    if differences:
        message = (
            f"The choices in {folder} are of other images or labels than this training's: "
            f"{differences}. Train with the plans and the configuration of {model['checkpoint']}, "
            "or ask again with a model of these."
        )
        raise ChoicesError(message)


def _find_fitting(dataset: Any, answers: Sequence[Answer]) -> list[Answer]:
    """Answers about images and candidates that are still those in the folder."""
    there = {}
    for name in {each.image for each in answers} & {*dataset.identifiers}:
        data, candidates, *_ = dataset.load_case(name)
        there[name] = hash_array(data[:]), hash_array(candidates[:])
    return [
        each
        for each in answers
        if there.get(each.image) == (each.image_sha256, each.candidates_sha256)
    ]


def check_no_validation_case(choices: Choices, validation: Any) -> None:
    """Refuse images that are also validation cases, by their voxels.

    Args:
        choices: What is trained on.
        validation: nnU-Net's dataset of the validation cases.

    Raises:
        ChoicesError: There is one.
    """
    known = KnownCases.of(validation)
    for identifier in sorted(choices.dataset.identifiers):
        case = known.find(choices.dataset.load_case(identifier)[0])
        if case is not None:
            message = (
                f"{identifier} in {choices.folder} is the validation case {case} of this fold: the "
                "validation would be too good. Train another fold, or fold 'all', or delete "
                f"{name_files(identifier)} in {choices.folder / IMAGES}."
            )
            raise ChoicesError(message)


def require_images(choices: Choices, images: UnlabelledImages) -> None:
    """Refuse answers that leave nothing to learn from."""
    if len(images):
        return
    model = Path(read_model(choices.folder)["checkpoint"]).parent
    fold = model.name.removeprefix("fold_")
    words = ["nnUNetv2_mapo", "choose", str(model.parent), "-f", fold, "-i", "UNLABELLED"]
    message = (
        f"There is nothing to learn from {choices}: no image has a candidate that a majority calls "
        "the best, and another that is called the worst. Go on as another rater, who is asked "
        "everything, and name the best and the worst: "
        f"{shlex.join([*words, '-o', str(choices.folder)])}"
    )
    raise ChoicesError(message)
