"""nnU-Net's three folders: set, there, writable."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding, say_command, say_export

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
_PROBE = ".nnUNetv2_mapo_doctor"


def find_folder(variable: str) -> Path | None:
    """Folder that an environment variable names; None if it is not set or not there."""
    value = os.environ.get(variable)
    return Path(value) if value and Path(value).is_dir() else None


def check_folder(variable: str, *, is_needed: bool = True) -> Finding:
    """Check that one of nnU-Net's folders is there.

    Args:
        variable: Environment variable that names it.
        is_needed: Whether a training, or the preparation that is still to be done, needs it.
    """
    value = os.environ.get(variable)
    level = PROBLEM if is_needed else NOTE
    if not value:
        return Finding(level, f"{variable} is not set", _say_elsewhere(variable))
    folder = Path(value)
    if not folder.exists():
        what = f"{variable}={value} does not exist"
        return Finding(level, what, say_command("mkdir", "-p", value))
    if not folder.is_dir():
        what = f"{variable}={value} is not a folder"
        return Finding(level, what, _say_elsewhere(variable))
    free = format_bytes(shutil.disk_usage(folder).free)
    return Finding(OK, f"{variable}={value}, {free} free")


def check_writable(folder: Path, otherwise: str) -> list[Finding]:
    """Whether a folder that may not exist yet can be written to, or be made.

    Args:
        folder: The folder.
        otherwise: What to do where no change of permissions helps.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    error = try_to_write(there)
    if error is None:
        return []
    is_own = hasattr(os, "getuid") and there.stat().st_uid == os.getuid()
    is_mended = is_own and isinstance(error, PermissionError)
    mend = say_command("chmod", "u+w", str(there)) if is_mended else otherwise
    return [Finding(PROBLEM, f"{there} cannot be written to: {error.strerror}", mend)]


def say_elsewhere(variable: str) -> str:
    """Command that makes another folder and names it, for one that cannot be used."""
    return f"{_say_elsewhere(variable)}  (a folder that you may write to, on a disk with space)"


def try_to_write(folder: Path) -> OSError | None:
    """Write and delete a small file; what went wrong, None where nothing did."""
    probe = folder / f"{_PROBE}.{os.getpid()}"
    try:
        probe.write_bytes(bytes(4096))
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):  # it was not written
            probe.unlink(missing_ok=True)
    return None


def format_bytes(num_bytes: float) -> str:
    """Bytes in GB, or in MB below 1 GB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _say_elsewhere(variable: str) -> str:
    folder = str(Path.home() / "nnUNet" / variable)
    make = "mkdir" if os.name == "nt" else "mkdir -p"
    return f"{make} {say_command(folder)} && {say_export(variable, folder)}"
