"""Files that appear complete or not at all, or are not there; fingerprints that show damage."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_mapo.support.errors import CommandError, MAPOError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_SEAL = "sha256_of_content"
UNFINISHED = ".mapo_unfinished"  # end of the name that a file has while it is written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteError(MAPOError, RuntimeError):
    """A file could not be written; the message says which, why, and how to go on."""


def find_checkpoint(model: Path, fold: int | str, name: str) -> Path:
    """Path of a checkpoint of a model's fold.

    Raises:
        CommandError: The fold or the checkpoint is missing; it names those that there are.
    """
    path = model / f"fold_{fold}" / name
    if not path.parent.is_dir():
        near = list_there(model, "fold_*")
        message = f"Fold {fold} is not in {model}. {near} Name the fold with -f."
        raise CommandError(message)
    if not path.is_file():
        near = list_there(path.parent, "checkpoint_*.pth")
        message = f"{path} is missing. {near} Name another with -chk."
        raise CommandError(message)
    return path


def list_there(folder: Path, pattern: str) -> str:
    """What there is instead, in words."""
    names = sorted(path.name for path in folder.glob(pattern))
    return f"There is: {', '.join(names)}." if names else "There is none at all."


@contextmanager
def complete_or_absent(path: Path, num_bytes: int) -> Iterator[Path]:
    """Path to write to inside a `with` block; the file gets its name when the block is done.

    Until then an older file of that name stays. If the block fails, nothing is left of its file.

    Args:
        path: Where the file is to appear.
        num_bytes: About what is to be written, for the message.

    Raises:
        WriteError: The disk is full, or something else keeps the file from being written.
    """
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # else the name could outlive the content in a power cut
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError where a disk is full
        existing = next(folder for folder in path.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(existing).free
        is_full = free < num_bytes or not isinstance(error, OSError) or error.errno in _FULL
        message = (
            f"{path} could not be written ({error}). It needs about {num_bytes / 1e6:.1f} MB; "
            f"{free / 1e6:.1f} MB are free there. What was written before is complete: "
            f"{'make space' if is_full else 'mend that'} and run the command again; a training "
            "goes on with --c."
        )
        raise WriteError(message) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears complete or not at all; errors of `complete_or_absent`."""
    with complete_or_absent(path, len(content)) as unfinished:
        unfinished.write_bytes(content)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file together with a checksum of its content."""
    sealed = {**content, _SEAL: hash_json(content)}
    write_atomically(path, json.dumps(sealed, indent=1).encode())


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Content of a file of `write_sealed`; None if it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop(_SEAL)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None  # what reading, decoding and taking the seal off anything but a dict raise
    return content if seal == hash_json(content) else None


def hash_file(path: Path) -> str | None:
    """SHA-256 of a file; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):  # checkpoints of many folds do not fit in memory
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def hash_json(content: Any) -> str:
    """SHA-256 of the JSON form of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values."""
    from torch import uint8  # here, for help on the command line imports this module

    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def hash_array(array: NDArray[Any]) -> str:
    """SHA-256 of shape, type and values."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    digest.update(array.tobytes())
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
    """First few differences between a checkpoint's weights and a network's, one line each.

    A prefix `module.` of the checkpoint's names does not count: nnU-Net removes it.
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
