"""The folder of a demo: where everything is, and how it is made and deleted."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_mapo.support.errors import CommandError

CONFIGURATIONS = ("2d", "3d_fullres")
DATASET_ID = 900
DATASET = f"Dataset{DATASET_ID}_MAPOPhantom"
TRAINER = "nnUNetTrainerDemo_MAPO_TwoRounds"
_MADE_BY = "nnUNetv2_mapo demo"


@dataclass(frozen=True)
class DemoFolder:
    """Paths inside the folder of a demo.

    Attributes:
        root: The folder itself, absolute.
        configuration: One of `CONFIGURATIONS`.
    """

    root: Path
    configuration: str

    @property
    def raw(self) -> Path:
        """Data set in nnU-Net's raw format."""
        return self.root / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        """Data set as nnU-Net's preprocessing leaves it."""
        return self.root / "nnUNet_preprocessed" / DATASET

    @property
    def model(self) -> Path:
        """What nnU-Net's training leaves."""
        name = f"{TRAINER}__nnUNetPlans__{self.configuration}"
        return self.root / "nnUNet_results" / DATASET / name

    @property
    def fold(self) -> Path:
        """The part of `model` that belongs to fold 0."""
        return self.model / "fold_0"

    @property
    def predictions(self) -> Path:
        """One folder of segmentations for each stage, and the images of the last one."""
        return self.root / "predictions"

    @property
    def pictures(self) -> Path:
        """PNG files."""
        return self.root / "pictures"

    @property
    def logs(self) -> Path:
        """Full output of each command."""
        return self.root / "logs"

    @property
    def trainers(self) -> Path:
        """Python file with the demo's trainers; nnU-Net searches its folder."""
        return self.root / "trainers" / "demo_trainers.py"

    @property
    def record(self) -> Path:
        """What marks the folder as a demo's and, at the end, holds its results."""
        return self.root / "demo.json"

    def prepare(self, *, overwrite: bool) -> None:
        """Make the folder; it may exist if it is empty or, with `overwrite`, a demo's.

        Raises:
            CommandError: The folder cannot be used.
        """
        try:
            if self.root.is_dir() and any(self.root.iterdir()):
                self._clear(overwrite=overwrite)
            for folder in (self.logs, self.pictures, self.predictions, self.trainers.parent):
                folder.mkdir(parents=True, exist_ok=True)
            self.write_record({})
        except OSError as error:
            message = f"Cannot write to {self.root} ({error}). Name another folder with --output."
            raise CommandError(message) from error

    def write_record(self, content: dict[str, Any]) -> None:
        """Write `record` with this content."""
        self.record.write_text(json.dumps({"made_by": _MADE_BY, **content}, indent=1))

    def _clear(self, *, overwrite: bool) -> None:
        if not self._is_of_demo():
            message = f"{self.root} is not empty. Name another folder with --output."
            raise CommandError(message)
        if not overwrite:
            message = (
                f"{self.root} holds an earlier demo. Delete that demo with --overwrite, or name "
                "another folder with --output."
            )
            raise CommandError(message)
        models = [DemoFolder(self.root, configuration).model for configuration in CONFIGURATIONS]
        for path in (self.raw, self.preprocessed, *models, self.predictions, self.pictures,
                     self.logs, self.trainers):  # fmt: skip
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _is_of_demo(self) -> bool:
        try:
            content = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and content.get("made_by") == _MADE_BY
