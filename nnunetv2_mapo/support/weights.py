"""State dicts of networks: fingerprints and differences."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

from torch import Tensor, uint8

from nnunetv2_mapo.support.files import hash_json


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def hash_shapes(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and shapes: the same for every network of one form."""
    return hash_json([[name, *tensor.shape] for name, tensor in weights.items()])


def match_names(theirs: Mapping[str, Tensor], mine: Collection[str]) -> dict[str, Tensor]:
    """Weights by the names that a network has, without a prefix `module.` that it does not know."""
    return {
        name if name in mine else name.removeprefix("module."): tensor
        for name, tensor in theirs.items()
    }


def compare_shapes(theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> list[str]:
    """First few differences in names and shapes, one line each.

    Args:
        theirs: Weights of a checkpoint; a prefix `module.` of their names does not count, because
            nnU-Net removes it.
        mine: Weights of the network that is to take them.
    """
    theirs = match_names(theirs, mine)
    lines = [f"it has no {name}" for name in mine if name not in theirs]
    lines += [f"the network has no {name}" for name in theirs if name not in mine]
    lines += [
        f"{name} is {tuple(theirs[name].shape)} there, {tuple(tensor.shape)} in the network"
        for name, tensor in mine.items()
        if name in theirs and theirs[name].shape != tensor.shape
    ]
    return [*lines[:4], f"and {len(lines) - 4} more"] if len(lines) > 5 else lines
