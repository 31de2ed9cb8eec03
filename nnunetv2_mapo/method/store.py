"""Mined rounds on disk: the file and the record of each case, then a manifest.

`preferences/round_01/CASE.b2nd` holds the channels of `stack_preferences` in the preprocessed
geometry, `CASE.b2nd.json` what mining found out about the case and the checksum of that file. A
case without both is not there. `manifest.json` is written when every case is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from numpy.typing import NDArray

from nnunetv2_mapo.method.config import Candidates, MAPOConfig
from nnunetv2_mapo.method.volumes import Volume
from nnunetv2_mapo.support.files import hash_file, read_sealed, write_atomically, write_sealed

PREFERENCES = "preferences"  # folder of the rounds in nnU-Net's fold folder
MANIFEST = "manifest.json"
CANDIDATES = "candidates.json"  # what the candidates differ in, found before the first case
WEIGHT_ONE = 100  # how a weight of 1 is stored; a small one is at least 1
MARGIN_ONE = 256  # how a margin of 1 logit is stored, up to 128
LONGEST_STEM = 200  # bytes; file systems take 255 for a name, with what we put behind it


class StoreError(RuntimeError):
    """A preference store that must not be trained on; the message says why and what to do."""


@dataclass(frozen=True)
class SampleRecord:
    """What mining found out about one training sample (a case, a slice or a window's cell)."""

    dice: list[float]  # of each candidate in the sampler's order; the first is the plain one
    chosen: int  # index of the chosen candidate; of a region pair 0, the plain prediction
    rejected: int | None  # index of the rejected one; None without a pair and of a region pair
    num_disagreeing: int  # voxels in which chosen and rejected differ
    num_voxels: int  # of the sample
    has_foreground: bool = True  # in its ground truth
    num_parts: int = 0  # of all candidates, with an effect on the metric; of a region pair
    num_preferred: int = 0  # of these, preferred to the plain prediction
    pair_dice: list[float] | None = None  # of chosen and rejected, put together from these parts
    # by the metric that ranks, if it is not Dice: of each candidate; of a region pair of the plain
    # prediction, chosen and rejected
    scores: list[float] | None = None

    @property
    def has_pair(self) -> bool:
        """Whether anything is preferred."""
        return self.rejected is not None or (self.num_parts > 0 and self.num_disagreeing > 0)

    @property
    def dice_chosen(self) -> float:
        """Dice of chosen; of the best candidate without a pair."""
        return self.pair_dice[0] if self.pair_dice else self.dice[self.chosen]

    @property
    def dice_rejected(self) -> float:
        """Dice of rejected; that of chosen without a pair."""
        if self.pair_dice:
            return self.pair_dice[1]
        return self.dice[self.chosen if self.rejected is None else self.rejected]

    @property
    def ranked(self) -> list[float]:
        """Plain prediction, chosen and rejected by the metric that ranks; empty if it is Dice."""
        if self.scores is None or self.pair_dice:
            return self.scores or []
        rejected = self.chosen if self.rejected is None else self.rejected
        return [self.scores[number] for number in (0, self.chosen, rejected)]

    @property
    def gap(self) -> float:
        """Gap between the best and the worst candidate, by the metric that ranks two of them."""
        return max(self._values) - min(self._values)

    def gap_within(self, most: float) -> float:
        """Largest gap between the best candidate and another that is not beyond a limit (eq. 4)."""
        best = max(self._values)
        return max(gap for value in self._values if (gap := best - value) <= most)

    @property
    def _values(self) -> list[float]:
        return self.dice if self.scores is None or self.pair_dice else self.scores


class Finished(NamedTuple):
    """Records of the cases that can be trained on; cases whose files have changed since."""

    records: dict[str, list[SampleRecord]]
    damaged: list[str]


@dataclass(frozen=True)
class Round:
    """One round's folder `fold_X/preferences/round_RR`.

    Its origin is what made it: configuration, plans, labels, data set … and the policy's
    fingerprint under `"policy"`. Cases of another origin are not read.
    """

    folder: Path
    origin: dict[str, Any]

    def path(self, identifier: str) -> Path:
        """File of a case."""
        return self.folder / f"{_file_stem(identifier)}.b2nd"

    def record_path(self, identifier: str) -> Path:
        """File of a case's record."""
        return self.folder / f"{_file_stem(identifier)}.b2nd.json"

    def open_stack(self, identifier: str) -> Any:
        """Channels of a case, see `stack_preferences`, memory mapped where possible."""
        mmap = {} if os.name == "nt" else {"mmap_mode": "r"}
        return blosc2.open(str(self.path(identifier)), mode="r", dparams={"nthreads": 1}, **mmap)

    def write_case(
        self,
        identifier: str,
        stack: Sequence[Volume] | NDArray[np.int16],
        records: Sequence[SampleRecord],
        patch_size: Sequence[int],
    ) -> None:
        """Write a case, its channels as of `stack_preferences`, then its samples' records.

        The patch size of the configuration decides the file's blocks and chunks.

        Raises:
            WriteError: The disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        content = _compress(stack, patch_size)
        write_atomically(self.path(identifier), content)
        record = {
            "origin": self.origin,
            "sha256": hashlib.sha256(content).hexdigest(),
            "samples": [asdict(record) for record in records],
        }
        write_sealed(self.record_path(identifier), record)

    def find_finished(self, identifiers: Iterable[str]) -> Finished:
        """Records of the cases that can be trained on, and which are damaged.

        It reads each case's file once, for its checksum, which takes long where they are many.
        """
        found = Finished({}, [])
        for identifier in identifiers:
            record = read_sealed(self.record_path(identifier))
            if record and not self._has_made(record):
                continue
            if record and record["sha256"] == hash_file(self.path(identifier)):
                found.records[identifier] = _to_records(record["samples"])
            elif self.record_path(identifier).exists():
                found.damaged.append(identifier)
        return found

    def write_values(self, values: Sequence[float]) -> None:
        """Write what the candidates differ in, so that a round is continued with the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_sealed(self.folder / CANDIDATES, {"origin": self.origin, "values": list(values)})

    def read_values(self) -> tuple[float, ...]:
        """Undo `write_values`; empty if nothing was written, or by another policy."""
        content = read_sealed(self.folder / CANDIDATES)
        return tuple(content["values"]) if content and self._has_made(content) else ()

    def _has_made(self, content: dict[str, Any]) -> bool:
        return _complete(content["origin"]) == _complete(self.origin)

    def write_manifest(self, cases: dict[str, list[SampleRecord]], values: Sequence[float]) -> None:
        """Write the manifest of a complete round: records, and what the candidates differ in."""
        content = {
            "origin": self.origin,
            "values": list(values),
            "cases": {
                identifier: {"samples": [asdict(record) for record in cases[identifier]]}
                for identifier in sorted(cases)
            },
        }
        write_sealed(self.folder / MANIFEST, content)

    def find_foreign(self) -> list[str]:
        """Differences of the store's origin to this one's, the policy left out, one line each."""
        ours = theirs = _complete(self.origin)
        for path in (self.folder / MANIFEST, *sorted(self.folder.glob("*.json"))):
            if content := read_sealed(path):
                theirs = _complete(content["origin"])
                break
        return [
            f"{key}: {theirs.get(key)} in the store, {mine} now"
            for key, mine in ours.items()
            if key != "policy" and theirs.get(key) != mine
        ]


def _compress(stack: Sequence[Volume] | NDArray[np.int16], patch_size: Sequence[int]) -> bytes:
    """Content of a case's file; the channels are read in parts."""
    shape = (len(stack), *stack[0].shape)
    blocks, chunks = comp_blosc2_params(shape, patch_size, np.dtype(np.int16).itemsize)
    # Labels are small numbers: shuffling their bytes hardly makes them smaller, but a third to a
    # half slower to read (tests/benchmarks/loader.py).
    filters = [blosc2.Filter.NOFILTER]
    cparams = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 4, "filters": filters}
    compressed = blosc2.empty(shape, np.int16, blocks=blocks, chunks=chunks, cparams=cparams)
    for number, channel in enumerate(stack):
        for start in range(0, shape[1], chunks[1]):
            planes = slice(start, start + chunks[1])
            part = np.asarray(channel[planes]).astype(np.int16)
            compressed[number, start : start + len(part)] = np.ascontiguousarray(part)
    content: bytes = compressed.to_cframe()
    return content


def _to_records(samples: Iterable[dict[str, Any]]) -> list[SampleRecord]:
    return [SampleRecord(**each) for each in samples]


def _complete(origin: dict[str, Any]) -> dict[str, Any]:
    """An origin with the default of each setting that there was not when it was written."""
    config = MAPOConfig.from_dict(origin.get("settings", {}))
    channels = 2 if config.pair == "case" else 3  # before each pair had a weight
    return {"channels": channels, **origin, "settings": config.to_dict()}


@dataclass(frozen=True)
class MinedRound(Round):
    """A round with what its manifest says."""

    cases: dict[str, list[SampleRecord]]
    values: tuple[float, ...]  # what the candidates differ in; empty in a store of version 0.1

    def candidates(self, num_dimensions: int) -> Candidates:
        """What the candidates differ in, by the settings and what the round found itself."""
        config = MAPOConfig.from_dict(self.origin["settings"])
        candidates = config.candidates(num_dimensions)
        return candidates._replace(values=self.values) if self.values else candidates


def read_rounds(fold: Path) -> list[MinedRound]:
    """Mined rounds of nnU-Net's folder of a fold in their order; incomplete ones are left out.

    Raises:
        StoreError: A manifest is damaged.
    """
    rounds = []
    for path in sorted((fold / PREFERENCES).glob(f"round_*/{MANIFEST}")):
        mined = read_round(path)
        if mined is None:
            message = f"{path} is damaged. Delete it: its round is then left out."
            raise StoreError(message)
        rounds.append(mined)
    return rounds


def read_round(manifest: Path) -> MinedRound | None:
    """A mined round by its manifest; None if that is missing or damaged."""
    content = read_sealed(manifest)
    if content is None:
        return None
    cases = {case: _to_records(each["samples"]) for case, each in content["cases"].items()}
    return MinedRound(manifest.parent, content["origin"], cases, tuple(content.get("values", ())))


def _file_stem(identifier: str) -> str:
    """Name of a case's files; one that would lead out of the folder or be too long is hashed."""
    is_a_name = Path(identifier).name == identifier and "\0" not in identifier
    if is_a_name and len(os.fsencode(identifier)) <= LONGEST_STEM:
        return identifier
    return hashlib.sha256(identifier.encode()).hexdigest()


def stack_preferences(segmentation: NDArray[Any], *preferences: NDArray[Any]) -> NDArray[np.int16]:
    """Channels [segmentation, chosen, rejected, weight], and the margin with them, int16.

    The segmentation is in nnU-Net's labels, `(1, *spatial)`; chosen and rejected are label maps,
    the weight is in 1 / `WEIGHT_ONE`, the margin of a reference that is `"cached"` in 1 /
    `MARGIN_ONE`, `(*spatial)`.
    """
    stack: NDArray[np.int16] = np.concatenate(
        (segmentation, np.stack(preferences)), dtype=np.int16, casting="unsafe"
    )
    return stack
