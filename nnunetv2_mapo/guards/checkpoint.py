"""Checkpoints: what MAPO adds to nnU-Net's, written once and read once, complete or refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nnunetv2_mapo.support.files import compare_shapes, complete_or_absent, hash_weights

BEST, LATEST, FINAL = "checkpoint_best.pth", "checkpoint_latest.pth", "checkpoint_final.pth"
NEEDED = ("current_epoch", "optimizer_state", "logging")  # to go on, not to predict
_ADVICE = (
    "Delete or move it: training with --c then takes the next of checkpoint_final.pth, "
    "checkpoint_latest.pth and checkpoint_best.pth, or starts anew."
)


@dataclass(frozen=True)
class Begun:
    """How far the preference stage has come; part of every checkpoint.

    Attributes:
        round: Latest round that was begun, 0 in the warm-up.
        policy: Hash of the weights that the round mines with.
        reference: Hash of the reference's weights.
        first_epochs: Epoch in which each round up to it began.
    """

    round: int = 0
    policy: str = ""
    reference: str = ""
    first_epochs: tuple[int, ...] = ()


@dataclass
class Loaded:
    """What a checkpoint that was loaded says besides nnU-Net's own, until it is used.

    Attributes:
        settings: Of the training that is continued; None if it was not one of MAPO.
        random_state: `read_state` of its first rank.
        reference: Weights of a reference that moves with each step.
        schedule: Stages of the training as they were planned, in words.
    """

    settings: dict[str, Any] | None = None
    random_state: dict[str, Any] | None = None
    reference: dict[str, Tensor] | None = None
    schedule: str | None = None

    @classmethod
    def of(cls, mapo: Mapping[str, Any]) -> Loaded:
        """By what stands under the key `mapo`; nothing of a stock checkpoint, which has none."""
        average = mapo.get("reference")
        return cls(
            mapo.get("config"),
            mapo.get("random_state"),
            average and average["weights"],
            mapo.get("schedule"),
        )


@dataclass(frozen=True)
class Hashed:
    """Weights whose hash is known, for as long as no step is taken."""

    weights: Mapping[str, Tensor]
    sha256: str

    def hash(self, weights: Mapping[str, Tensor]) -> str:
        """`hash_weights`, computed unless these are the same tensors: a trainer may save others."""
        is_same = _find_places(weights) == _find_places(self.weights)
        return self.sha256 if is_same else hash_weights(weights)


def _find_places(weights: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        for name, tensor in weights.items()
    }


@contextmanager
def adding_to_checkpoint(
    describe: Callable[[], dict[str, Any]], hashed: Hashed | None = None
) -> Iterator[None]:
    """Let each checkpoint that is saved inside a `with` block hold the key `mapo`.

    `torch.save` is taken over for that time: nnU-Net offers no other way to add to a checkpoint
    before it is on the disk. The file appears under the name that the trainer gave it, complete
    or not at all; whatever else is saved inside the block is not touched. `describe` makes what
    the key holds, to which the hash of the weights is added, computed if it is not known.

    Raises:
        WriteError: The disk is full; the earlier checkpoint of that name is still there.
    """
    save = torch.save

    def save_with_key(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if not (isinstance(content, dict) and "network_weights" in content):
            save(content, file, *args, **kwargs)
            return
        hash_ = hashed.hash if hashed else hash_weights
        mapo = {**describe(), "weights": hash_(content["network_weights"])}
        content = {**content, "mapo": mapo}
        if not isinstance(file, (str, os.PathLike)):  # in memory
            save(content, file, *args, **kwargs)
            return
        with complete_or_absent(Path(file), _count_bytes(content)) as unfinished:
            save(content, unfinished, *args, **kwargs)

    with patch.object(torch, "save", save_with_key):
        yield


def _count_bytes(content: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor)]
    # by memory: nnU-Net's networks have weights under several names, which are saved once
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@contextmanager
def already_read(name: str, checkpoint: dict[str, Any]) -> Iterator[None]:
    """Let `torch.load` answer for one file inside a `with` block with what was read of it."""
    load = torch.load

    def load_once(file: Any, *args: Any, **kwargs: Any) -> Any:
        return checkpoint if file == name else load(file, *args, **kwargs)

    with patch.object(torch, "load", load_once):
        yield


def read_checkpoint(
    source: str | Path | dict[str, Any], advice: str = _ADVICE, *, needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net; its tensors stay on the disk until they are used.

    Args:
        source: The file, or what was read of it.
        advice: What to do if it cannot be used.
        needed: Keys that it must have besides the network's weights.

    Raises:
        ValueError: It is missing, damaged, something else, or lacks a key.
    """
    if not isinstance(source, dict) and not Path(source).is_file():
        there = sorted(path.name for path in Path(source).parent.glob("*.pth"))
        message = (
            f"There is no checkpoint {source}, but in its folder: {', '.join(there) or 'none'}."
        )
        raise ValueError(message)
    try:
        checkpoint: dict[str, Any] = (
            source
            if isinstance(source, dict)
            else torch.load(source, map_location="cpu", mmap=True, weights_only=False)
        )
        reason = _find_damage(checkpoint, needed)
    except Exception as error:  # a damaged pickle may raise anything
        reason = f"{type(error).__name__}: {error}"
    if reason:
        name = "The content given" if isinstance(source, dict) else source
        message = f"{name} is damaged or no checkpoint of an nnU-Net training ({reason}). {advice}"
        raise ValueError(message)
    return checkpoint


def _find_damage(checkpoint: Mapping[str, Any], needed: Sequence[str]) -> str:
    """What is wrong with a checkpoint's content; a KeyError if it lacks something needed."""
    weights, *_ = (checkpoint[key] for key in ("network_weights", *needed))
    mapo = checkpoint.get("mapo", {})  # a stock checkpoint has none
    if mapo.get("weights") and hash_weights(weights) != mapo["weights"]:
        return "its checksum is wrong"
    average = mapo.get("reference")
    if average and hash_weights(average["weights"]) != average["sha256"]:
        return "the reference in it is damaged"
    return ""


@contextmanager
def explaining_other_network(
    name: str, weights: Mapping[str, Tensor], network: nn.Module, *, plans: str
) -> Iterator[None]:
    """Load weights into a network inside a `with` block, or say in what they are another one's.

    Raises:
        ValueError: They do not load, and names or shapes are not those of the network.
    """
    try:
        yield
    except RuntimeError as error:
        differences = "; ".join(compare_shapes(weights, network.state_dict()))
        if not differences:
            raise
        message = (
            f"{name} holds the weights of another network than the one of {plans}: {differences}. "
            "Use the trainer, plans, configuration and data set that it was trained with, or train "
            "without --c under another trainer's name."
        )
        raise ValueError(message) from error


class Recovered(NamedTuple):
    """What takes the place of a reference whose file is missing or damaged.

    Attributes:
        weights: The lost ones, or the policy's.
        begun: How far the training has come with these.
        note: What a user should know.
    """

    weights: dict[str, Tensor]
    begun: Begun
    note: str


def recover_reference(path: Path, policy: dict[str, Tensor], begun: Begun) -> Recovered:
    """The reference's weights where they are still: the policy, or the best checkpoint beside it.

    Else the policy becomes the reference, whose round is mined again.
    """
    policy_hash, best = hash_weights(policy), path.with_name(BEST)
    note = f"{path} is missing or damaged; restored from "
    if policy_hash == begun.reference:  # stopped before the file was written
        return Recovered(policy, begun, f"{note}the policy")
    if best.is_file():
        weights = read_checkpoint(best)["network_weights"]
        if hash_weights(weights) == begun.reference:
            return Recovered(weights, begun, f"{note}{best}")
    note = (
        f"WARNING: {path} is missing or damaged and the weights it held are gone. "
        "The current weights become the reference, and this round is mined again."
    )
    return Recovered(policy, replace(begun, policy=policy_hash, reference=policy_hash), note)
