"""Images are segmented in the background while an expert already judges others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from numpy.typing import NDArray

from nnunetv2_mapo.guards.known_cases import KnownCases
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.support.errors import CommandError, MAPOError
from nnunetv2_mapo.support.files import hash_array, hash_file
from nnunetv2_mapo.tools.choose.candidates import find_rates, make_candidates
from nnunetv2_mapo.tools.choose.folder import ChoicesFolder, Kept
from nnunetv2_mapo.tools.choose.images import ImageError, Preprocessed, preprocess
from nnunetv2_mapo.tools.models import TrainedModel, open_miner

NUM_FOR_RATES = 4  # images on which the dropout rates are found
MOST_FOR_RATES = 20  # that are tried if the model segments nothing in these


@dataclass
class Preparation:
    """Segments the images of a folder that have no candidates yet, in a thread of its own.

    Attributes:
        folder: Where they go.
        model: Makes the candidates.
        files: Of each image by its identifier.
        most: Candidates of an image.
        seed: Decides them.
        device: Where the network lies.
        log: Takes what a user should know.
        ready: Images that can be asked about.
        left_out: Why others cannot.
        failure: What ended it early.
    """

    folder: ChoicesFolder
    model: TrainedModel
    files: Mapping[str, list[str]]
    most: int
    seed: int
    device: torch.device
    log: Callable[[str], None]
    ready: dict[str, Kept] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self._stop, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        for identifier in self.folder.find_images():
            self.ready[identifier] = self.folder.read_kept(identifier)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the image that is being segmented."""
        self._stop.set()
        self._thread.join()

    def wait(self) -> None:
        """Wait until every image is ready or left out.

        Raises:
            Exception: What ended it early.
        """
        self._done.wait()
        if self.failure:
            raise self.failure

    @property
    def is_done(self) -> bool:
        """Whether nothing more becomes ready."""
        return self._done.is_set()

    @property
    def num_waiting(self) -> int:
        """Images of which it is not known yet whether they can be asked about."""
        known = self.ready.keys() | self.left_out.keys()
        return 0 if self.is_done else len(self.files.keys() - known)

    def _run(self) -> None:
        try:
            self._refuse_others()
            waiting = [name for name in self.files if name not in self.ready]
            if waiting:
                # Whole channels: single elements give specks, which no expert takes for a
                # segmentation.
                config = MAPOConfig(granularity="channel", seed=self.seed)
                with open_miner(self.model, config, self.device) as miner:
                    self._prepare(waiting, miner)
        except Exception as error:  # the page and the command say it
            self.failure = error
        finally:
            self._done.set()

    def _refuse_others(self) -> None:
        """Refuse images of the names of earlier ones: they would pass for these."""
        for name in sorted(self.ready.keys() & self.files.keys()):
            if self._stop.is_set():
                return
            source = self.ready[name].source
            if source and source != hash_files(self.files[name]):
                message = (
                    f"{self.files[name][0]} is not the file that {name} in {self.folder.images} "
                    "was made of. Name a new folder of choices with -o, or the image otherwise."
                )
                raise CommandError(message)

    def _prepare(self, waiting: list[str], miner: Miner) -> None:
        known = read_known_cases(self.model)
        owners = {kept.image_sha256: name for name, kept in self.ready.items()}
        rates = self.folder.read_rates() or self._find_rates(miner) or miner.sampler.values
        for name in waiting:
            if self._stop.is_set():
                return
            try:
                image = self._read(name, known, owners)
                self.ready[name] = self._segment(name, image, rates, miner)
                owners[hash_array(image.image)] = name
            except ImageError as error:
                self._leave_out(name, str(error))
            except MAPOError:  # a full disk
                raise
            except Exception as error:  # whatever preprocessing raises; the next may do
                self._leave_out(name, f"{type(error).__name__}: {error}")

    def _leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = reason
        self.log(f"{name} is not asked about: {reason}")

    def _segment(
        self, name: str, image: Preprocessed, rates: Sequence[float], miner: Miner
    ) -> Kept:
        """Write an image with its candidates."""
        found = make_candidates(miner, image.image, name, rates, self.most, self.model, self.log)
        if found is None:
            message = "fewer than two of its candidates differ"
            raise ImageError(message)
        patch_size = tuple(self.model.configuration_manager.patch_size)
        return self.folder.write_image(
            name, image.image, found, image.properties, patch_size, image.display,
            hash_files(self.files[name]),
        )  # fmt: skip

    def _read(self, name: str, known: KnownCases, owners: Mapping[str, str]) -> Preprocessed:
        """Preprocess an image that is new."""
        image = preprocess(self.model, self.files[name])
        if owner := owners.get(hash_array(image.image)):
            message = f"it is the same as {owner}"
            raise ImageError(message)
        if case := known.find(image.image):
            message = f"it is the case {case} of {self.model.plans_manager.dataset_name}"
            raise ImageError(message)
        return image

    def _find_rates(self, miner: Miner) -> tuple[float, ...]:
        """Dropout rates by some of the images that can be read; empty if they tell nothing."""
        step = max(1, len(self.files) // NUM_FOR_RATES)
        spread = [*self.files][::step][:NUM_FOR_RATES]
        names = [*spread, *(name for name in self.files if name not in spread)]
        there = (image for name in names if (image := self._try_to_read(name)) is not None)
        rates = find_rates(miner, islice(there, MOST_FOR_RATES), NUM_FOR_RATES, self.log)
        if rates and not self._stop.is_set():
            self.folder.write_rates(rates)
            self.log(f"candidates at {len(rates)} dropout rates up to {rates[-1]:.3g}")
        return rates

    def _try_to_read(self, name: str) -> NDArray[np.float32] | None:
        """A preprocessed image; None if it cannot be read, which is said when its turn comes."""
        if self._stop.is_set():
            return None
        try:
            return preprocess(self.model, self.files[name]).image
        except Exception:  # whatever readers and preprocessing raise
            return None


def hash_files(files: Sequence[str]) -> list[str | None]:
    """SHA-256 of each file."""
    return [hash_file(Path(file)) for file in files]


def read_known_cases(model: TrainedModel) -> KnownCases:
    """All preprocessed cases of a model's data set, training and validation; none if not here.

    They are looked for in `nnUNet_preprocessed`.
    """
    identifier = model.configuration_manager.data_identifier
    if not nnUNet_preprocessed.is_set():
        return KnownCases()
    root = Path(nnUNet_preprocessed.require())
    folder = root / model.plans_manager.dataset_name / identifier
    if not folder.is_dir() or not any(folder.iterdir()):
        return KnownCases()
    return KnownCases.of(infer_dataset_class(str(folder))(str(folder)))
