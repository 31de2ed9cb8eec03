"""Mined rounds on disk: one file a case, then a manifest; each appears complete or not at all.

`preferences/round_01/CASE.b2nd` holds the int16 channels [segmentation, chosen, rejected] in the
preprocessed geometry, and what mining found out about the case. `manifest.json` is written when
every case is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

PREFERENCES = "preferences"  # folder of the rounds in nnU-Net's fold folder
MANIFEST = "manifest.json"
_RECORD = "mapo"  # name of the variable-length metadata that holds origin and record


class StoreError(RuntimeError):
    """A preference store that must not be trained on; the message says why and what to do."""


@dataclass(frozen=True)
class SampleRecord:
    """What mining found out about one training sample (a case in 3D, a slice in 2D).

    Attributes:
        dice: Dice of each candidate, in the order of the rates; the first is the plain one.
        chosen: Index of the chosen candidate.
        rejected: Index of the rejected one; None without a pair.
        num_disagreeing: Voxels in which they differ.
        num_voxels: Voxels of the sample.
    """

    dice: list[float]
    chosen: int
    rejected: int | None
    num_disagreeing: int
    num_voxels: int


@dataclass(frozen=True)
class Round:
    """One round's folder.

    Attributes:
        folder: `fold_X/preferences/round_RR`.
        origin: What made it: configuration, plans, labels, data set … and the policy's
            fingerprint under `"policy"`. Cases of another origin are not read.
    """

    folder: Path
    origin: dict[str, Any]

    def path(self, identifier: str) -> Path:
        """File of a case."""
        return self.folder / f"{identifier}.b2nd"

    def open_stack(self, identifier: str) -> Any:
        """Channels [segmentation, chosen, rejected] of a case, memory mapped where possible."""
        mmap = {} if os.name == "nt" else {"mmap_mode": "r"}
        return blosc2.open(str(self.path(identifier)), mode="r", dparams={"nthreads": 1}, **mmap)

    def write_case(
        self,
        identifier: str,
        stack: np.ndarray,
        records: Sequence[SampleRecord],
        patch_size: Sequence[int],
    ) -> None:
        """Write a case; the file appears by renaming, complete.

        Args:
            identifier: Case identifier.
            stack: Shape `(3, *spatial)`, int16.
            records: One of each training sample of the case.
            patch_size: Patch of the configuration, which decides the file's blocks and chunks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        blocks, chunks = comp_blosc2_params(stack.shape, patch_size, stack.itemsize)
        unfinished = self.folder / f"{identifier}.{os.getpid()}.unfinished"
        array = blosc2.asarray(
            np.ascontiguousarray(stack),
            urlpath=str(unfinished),
            mode="w",
            blocks=blocks,
            chunks=chunks,
            cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 4},
        )
        array.schunk.vlmeta[_RECORD] = json.dumps(
            {"origin": self.origin, "samples": [asdict(record) for record in records]}
        )
        del array  # closes the file, which Windows asks for before renaming
        unfinished.replace(self.path(identifier))

    def find_finished(self, identifiers: Iterable[str]) -> dict[str, list[SampleRecord]]:
        """Records of the cases that can be trained on.

        A case must be there, readable, of the same origin and, once there is a manifest, the very
        file that the manifest tells of.
        """
        manifest = self._read_manifest()
        known = manifest.get("cases", {}) if manifest.get("origin") == self.origin else {}
        found = {}
        for identifier in identifiers:
            content = self._read_record(identifier)
            if content is None or content["origin"] != self.origin:
                continue
            checksum = known.get(identifier, {}).get("sha256")
            if checksum is None or checksum == hash_file(self.path(identifier)):
                found[identifier] = [SampleRecord(**sample) for sample in content["samples"]]
        return found

    def _read_record(self, identifier: str) -> dict[str, Any] | None:
        if not self.path(identifier).is_file():
            return None
        try:
            stack = self.open_stack(identifier)
            content: dict[str, Any] = json.loads(stack.schunk.vlmeta[_RECORD])
        except (RuntimeError, ValueError, KeyError):  # what blosc2 and json raise on damage
            return None
        return content

    def write_manifest(self, cases: dict[str, list[SampleRecord]]) -> None:
        """Write the manifest of a complete round."""
        content = {
            "origin": self.origin,
            "cases": {
                identifier: {
                    "sha256": hash_file(self.path(identifier)),
                    "samples": [asdict(record) for record in cases[identifier]],
                }
                for identifier in sorted(cases)
            },
        }
        write_atomically(self.folder / MANIFEST, json.dumps(content, indent=1).encode())

    def find_foreign(self) -> list[str]:
        """Differences of the manifest's origin to this one's, the policy left out, one line each.

        Empty where there is no manifest that can be read.
        """
        theirs = self._read_manifest().get("origin", self.origin)
        return [
            f"{key}: {theirs.get(key)} in the store, {mine} now"
            for key, mine in self.origin.items()
            if key != "policy" and theirs.get(key) != mine
        ]

    def forget_manifest(self) -> None:
        """Delete the manifest, because cases are about to change."""
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def _read_manifest(self) -> dict[str, Any]:
        """Content of the manifest; empty if there is none or it is damaged."""
        try:
            content = json.loads((self.folder / MANIFEST).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def stack_preferences(
    segmentation: np.ndarray, chosen: np.ndarray, rejected: np.ndarray
) -> np.ndarray:
    """Stack as the store holds it; shapes `(1, *spatial)` and twice `(*spatial)`."""
    return np.concatenate((segmentation, chosen[None], rejected[None])).astype(np.int16)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears under its name complete or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_json(content: Any) -> str:
    """SHA-256 of the JSON form of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
