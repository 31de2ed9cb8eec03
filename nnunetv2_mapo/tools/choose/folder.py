"""A folder of choices on disk: see `method.choices` for what lies in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from numpy.typing import NDArray

from nnunetv2_mapo.guards.start import LOCK, InUseError, lock_folder
from nnunetv2_mapo.method.choices import (
    IMAGES,
    MODEL,
    VERSION,
    ChoicesError,
    name_files,
    read_model,
)
from nnunetv2_mapo.support.files import (
    UNFINISHED,
    complete_or_absent,
    hash_array,
    hash_weights,
    write_atomically,
)
from nnunetv2_mapo.tools.choose.candidates import Differing
from nnunetv2_mapo.tools.models import TrainedModel

ENTRY = "mapo_choices"  # of an image's properties: what is known of its candidates
_UNFINISHED = "unfinished"  # folder of an image that is being written
# Entries of `model.json` that must be those of the model, each with its name in words.
_FIXED = {
    "weights": "weights",
    "plans": "plans",
    "configuration": "configuration",
    "dataset_json": "dataset.json",
}


class Kept(NamedTuple):
    """What is known of an image's candidates without reading them."""

    image_sha256: str
    candidates_sha256: str
    num_candidates: int
    widest: tuple[int, int]  # the two that differ most
    disagreement: float  # of these
    num_regions: int  # disputed ones of these
    source: Sequence[str | None] = ()  # hash of each file of the image; of earlier versions none


class KeptImage(NamedTuple):
    """An image of a folder, read."""

    image: NDArray[np.float32]  # `(channels, *spatial)`
    candidates: NDArray[np.int16]  # nnU-Net's labels, `(K, *spatial)`
    properties: dict[str, Any]  # nnU-Net's


def describe_model(model: TrainedModel, checkpoint: str) -> dict[str, Any]:
    """Content of `model.json`: which model made the candidates."""
    return {
        "version": VERSION,
        "checkpoint": str(model.folder / f"fold_{model.fold}" / checkpoint),
        "trainer": model.trainer_name,
        "fold": model.fold,
        "configuration": model.configuration,
        "plans": model.plans_manager.plans,
        "dataset_json": model.dataset_json,
        "weights": hash_weights(model.network.state_dict()),
    }


@dataclass(frozen=True)
class ChoicesFolder:
    """A folder of choices."""

    path: Path

    @property
    def images(self) -> Path:
        """Dataset of nnU-Net's."""
        return self.path / IMAGES

    def find_images(self) -> list[str]:
        """Identifiers of the images that are complete, sorted."""
        return sorted(nnUNetDatasetBlosc2.get_identifiers(str(self.images)))

    def read_rates(self) -> tuple[float, ...]:
        """Dropout rates of the candidates; empty if none were found yet."""
        return tuple(read_model(self.path).get("rates", ()))

    def write_rates(self, rates: Sequence[float]) -> None:
        """Keep the rates, so that a later sitting's candidates are made with the same."""
        content = {**read_model(self.path), "rates": list(rates)}
        write_atomically(self.path / MODEL, json.dumps(content, indent=1).encode())

    def read_kept(self, identifier: str) -> Kept:
        """What is known of an image's candidates.

        Raises:
            ChoicesError: The image is damaged, or not of this command.
        """
        try:
            content = load_pickle(str(self.images / f"{identifier}.pkl"))[ENTRY]
            entry = {"source": (), **content}
            return Kept(**{name: entry[name] for name in Kept._fields})
        except Exception as error:  # whatever unpickling a damaged file raises
            message = (
                f"{self.images / identifier}.pkl is damaged ({type(error).__name__}: {error}). "
                f"Delete {name_files(identifier)} there: the image is segmented anew."
            )
            raise ChoicesError(message) from error

    def read_image(self, identifier: str) -> KeptImage:
        """Read an image whole.

        Raises:
            ChoicesError: A file of it is damaged or missing.
        """
        dataset = nnUNetDatasetBlosc2(str(self.images), [identifier])
        try:
            data, candidates, _, properties = dataset.load_case(identifier)
            return KeptImage(data[:], candidates[:], properties)
        except Exception as error:  # Blosc2's, unpickling's, the file system's
            message = (
                f"{identifier} in {self.images} cannot be read ({type(error).__name__}: {error}). "
                f"Delete {name_files(identifier)} there: the image is segmented anew."
            )
            raise ChoicesError(message) from error

    def write_image(
        self,
        identifier: str,
        image: NDArray[np.float32],
        found: Differing,
        properties: Mapping[str, Any],
        patch_size: tuple[int, ...],
        display: Sequence[tuple[float, float]] | None = None,
        source: Sequence[str | None] = (),
    ) -> Kept:
        """Write an image with its candidates; it appears complete or not at all.

        `display` is that of `Preprocessed`, `source` the hash of each file that it was read from.

        Raises:
            WriteError: The disk is full.
        """
        kept = Kept(
            hash_array(image), hash_array(found.label_maps), len(found.label_maps), found.widest,
            found.disagreement, found.num_regions, [*source],
        )  # fmt: skip
        entry = kept._asdict() | {"rates": found.values, "display": display}
        unfinished = self.path / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        num_bytes = image.nbytes + found.label_maps.nbytes
        with complete_or_absent(unfinished / "written", num_bytes) as mark:
            blocks, chunks = comp_blosc2_params(image.shape, patch_size, image.itemsize)
            of_maps = comp_blosc2_params(found.label_maps.shape, patch_size, 2)
            nnUNetDatasetBlosc2.save_case(
                image, found.label_maps, {**properties, ENTRY: entry}, str(unfinished / identifier),
                chunks=chunks, blocks=blocks, chunks_seg=of_maps[1], blocks_seg=of_maps[0],
            )  # fmt: skip
            for path in unfinished.iterdir():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            mark.touch()
        # nnU-Net lists an image by its .b2nd, which therefore comes last
        for ending in ("_seg.b2nd", ".pkl", ".b2nd"):
            (unfinished / f"{identifier}{ending}").replace(self.images / f"{identifier}{ending}")
        shutil.rmtree(unfinished, ignore_errors=True)
        return kept


def open_folder(path: Path, origin: dict[str, Any]) -> ChoicesFolder:
    """Open a folder of choices, or make one; this process is the only one that writes to it.

    Args:
        path: The folder.
        origin: `describe_model` of the model.

    Raises:
        ChoicesError: It is of another model or version, holds something else, cannot be written
            to, or another process has it open.
    """
    is_new = not (path / MODEL).exists()
    # what is left where a first start was killed
    ours = {LOCK, IMAGES, f"{MODEL}{UNFINISHED}"}
    if is_new and path.is_dir() and {each.name for each in path.iterdir()} - ours:
        message = f"{path} holds something else. Name a new folder with -o."
        raise ChoicesError(message)
    try:
        (path / IMAGES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{path / IMAGES} cannot be made ({error}). Name another folder with -o."
        raise ChoicesError(message) from error
    try:
        lock_folder(path)
    except InUseError as error:
        message = (
            f"{path} is open in another nnUNetv2_mapo choose: {error.args[0].split('. ')[0]}. Go "
            "on in its page, or stop it first."
        )
        raise ChoicesError(message) from error
    if is_new:
        write_atomically(path / MODEL, json.dumps(origin, indent=1).encode())
    check_origin(path, origin)
    return ChoicesFolder(path)


def check_origin(path: Path, origin: Mapping[str, Any]) -> None:
    """Refuse a folder whose candidates are of another model.

    Raises:
        ChoicesError: They are.
    """
    content = read_model(path)
    differing = [words for name, words in _FIXED.items() if content.get(name) != origin[name]]
    if differing:
        number = path.name.rpartition("_")[2]
        is_numbered = "_" in path.name and number.isdecimal()
        stem = path.name.rpartition("_")[0] if is_numbered else path.name
        following = f"{stem}_{int(number) + 1 if is_numbered else 2}"
        message = (
            f"{path} is of another model ({content.get('checkpoint')}): other "
            f"{', '.join(differing)}. "
            "Answers about its candidates say nothing about this one's. To ask again with a newly "
            f"trained model take a new folder, -o {path.with_name(following)}."
        )
        raise ChoicesError(message)
