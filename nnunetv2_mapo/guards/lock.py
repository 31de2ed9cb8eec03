"""One training at a time in a fold's folder."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]  # its absence is what we ask for

LOCK = "mapo.lock"
# By process, which a fork changes. Open for good: closing one file of a path unlocks them all.
_held: dict[tuple[int, Path], int] = {}


class InUseError(RuntimeError):
    """Another process trains in the folder; the message says which."""


def lock_folder(folder: Path) -> None:
    """Make this process the only one that trains in a folder, until it ends.

    The lock is the operating system's on a file. It belongs to this process and to none of its
    workers, so it ends with the process, however that ends. File systems without locks are left
    unlocked.

    Args:
        folder: Must exist.

    Raises:
        InUseError: Another process holds the lock.
    """
    path = (folder / LOCK).resolve()
    if fcntl is None or (os.getpid(), path) in _held:
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # the umask takes from it
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
