"""May a training start, or go on? Its class, its data, its folder, and what was left there."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_mapo.guards.checkpoint import FINAL
from nnunetv2_mapo.guards.signatures import check_signatures
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.reference import REFERENCE
from nnunetv2_mapo.method.store import PREFERENCES, Round, StoreError
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.support.files import UNFINISHED

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]  # its absence is what we ask for

NUM_FOLDS = 5  # of the split that nnU-Net makes where there is none
LOCK = "mapo.lock"
# By process, which a fork changes. Open for good: closing one file of a path unlocks them all.
_held: dict[tuple[int, Path], int] = {}


class InUseError(RuntimeError):
    """Another process trains in the folder; the message says which."""


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer class that cannot train here: its settings, its methods, nnU-Net's folders.

    Raises:
        TypeError: Its settings are no `MAPOConfig`.
        InputError: A setting is not valid, or nnU-Net cannot call one of its methods.
    """
    if not isinstance(trainer.mapo, MAPOConfig):
        message = f"{trainer.__name__}.mapo is {trainer.mapo!r}: a MAPOConfig(…) is needed."
        raise TypeError(message)
    check_signatures(trainer)
    trainer.mapo.validate()
    nnUNet_preprocessed.require()
    nnUNet_results.require()


def check_fold(fold: int | str) -> None:
    """Refuse what nnU-Net would take for the last fold."""
    if isinstance(fold, int) and fold < 0:
        message = f"fold {fold} is not valid: 0, 1, 2 … of splits_final.json, or 'all'"
        raise InputError(message)


def check_preprocessed(folder: Path, dataset: str, configuration: str) -> None:
    """Refuse a data set that is not preprocessed for a configuration."""
    if not folder.is_dir() or not any(folder.iterdir()):
        message = (
            f"{dataset} is not preprocessed for {configuration}: {folder} is missing or empty. "
            f"Run nnUNetv2_preprocess -d {dataset[7:10]} -c {configuration} with the plans of "
            "this training."
        )
        raise InputError(message)


def refuse_few_cases(folder: str, splits_file: Path) -> None:
    """Refuse a split into folds that nnU-Net has failed to make of too few cases."""
    available = infer_dataset_class(folder).get_identifiers(folder)
    if not splits_file.is_file() and len(available) < NUM_FOLDS:
        message = (
            f"A split into {NUM_FOLDS} folds needs {NUM_FOLDS} cases; there are "
            f"{len(available)}: {list(available)}. Train fold 'all', or write your own split "
            f"to {splits_file}."
        )
        raise InputError(message)


def check_split(
    training: Sequence[str], validation: Sequence[str], available: Collection[str], source: Path
) -> None:
    """Refuse a split without training or validation cases, or with cases that are not there."""
    for name, identifiers in (("training", training), ("validation", validation)):
        if not identifiers:
            message = f"This fold has no {name} case. See {source}."
            raise InputError(message)
        if missing := sorted(set(identifiers) - set(available)):
            message = (
                f"{len(missing)} {name} cases of this fold are not among the preprocessed cases: "
                f"{missing[:5]}. Correct {source}, or preprocess the data set again."
            )
            raise InputError(message)


def check_foreground(dataset: Any) -> None:
    """Refuse training cases that are all background.

    Args:
        dataset: nnU-Net's; its properties list some voxels of each foreground class or region.
    """
    for identifier in dataset.identifiers:
        *_, properties = dataset.load_case(identifier)
        for label, places in properties["class_locations"].items():
            # With an ignore label there is one more list, of all that is annotated.
            is_foreground = not (isinstance(label, tuple) and -1 in label)
            if is_foreground and len(places):
                return
    message = (
        f"None of the {len(dataset.identifiers)} training cases has a voxel of any foreground "
        "class: there is nothing to learn. Check the labels in labelsTr against dataset.json and "
        "preprocess again."
    )
    raise InputError(message)


def lock_folder(folder: Path) -> None:
    """Make this process the only one that trains in a folder, until it ends.

    The lock is the operating system's on a file: POSIX's, which no worker inherits, so that
    workers that outlive a killed training do not hold it. File systems without locks are left
    unlocked.

    Args:
        folder: Must exist.

    Raises:
        InUseError: Another process holds the lock.
        InputError: The lock's file cannot be opened, as of another account.
    """
    path = (folder / LOCK).resolve()
    if fcntl is None or (os.getpid(), path) in _held:
        return
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # the umask takes from it
    except OSError as error:
        message = (
            f"{path} cannot be written ({error}). Give your account the right to write to it and "
            "to its folder, or name another folder."
        )
        raise InputError(message) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(file, 1000).decode()
        os.close(file)
        message = (
            f"{folder} is being trained in by {holder}. Wait for it or stop it; two trainings of "
            "one fold would overwrite each other's files. Other folds can be trained meanwhile."
        )
        raise InUseError(message) from None
    except OSError:  # a file system that has no locks
        os.close(file)
        return
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    _held[os.getpid(), path] = file


def clear_folder(folder: Path) -> None:
    """Remove what killed writers left."""
    for leftover in folder.rglob(f"*{UNFINISHED}"):
        leftover.unlink()


def set_aside(folder: Path) -> Path | None:
    """Move what an earlier training left here, before a new one writes anything.

    Of that nothing is lost, and nothing is taken for the new one's: `--c` would go on with the
    earlier one's final checkpoint, and its validation be compared.

    Returns:
        Folder in which the earlier training is now; None if there was none.
    """
    # the one that --c looks for first goes last: killed in between, it goes on with the earlier one
    checkpoints = sorted(folder.glob("checkpoint_*.pth"), key=lambda path: path.name == FINAL)
    rounds = sorted(folder.glob(f"{PREFERENCES}/round_*"))
    others = [path for name in (REFERENCE, "validation") if (path := folder / name).exists()]
    earlier = [*checkpoints, *rounds, *others]
    if not earlier:
        return None
    numbers = itertools.count(1)
    place = next(path for n in numbers if not (path := folder / f"earlier_{n}").exists())
    for path in earlier:
        moved = place / path.relative_to(folder)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    return place


def check_settings(trainer: str, settings: MAPOConfig, earlier: dict[str, Any] | None) -> None:
    """Refuse to continue a training with other settings than it had.

    Raises:
        ValueError: They differ.
    """
    if earlier is not None and (differences := settings.differences(earlier)):
        message = (
            f"{trainer} cannot be continued with other settings: {'; '.join(differences)}. "
            "Restore them, or train without --c under another name."
        )
        raise ValueError(message)


def check_pairs(mined: Round) -> None:
    """Refuse to continue a round with pairs of other plans, labels or data.

    Raises:
        StoreError: Something differs.
    """
    if differences := mined.find_foreign():
        message = (
            f"The preferences in {mined.folder} are not of this training: "
            f"{'; '.join(differences)}. Restore what changed, or delete the folder and "
            "continue: the round is then mined again."
        )
        raise StoreError(message)
