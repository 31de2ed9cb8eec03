"""Conflicting installations: several copies of this package, of nnU-Net or of MAPO's trainers."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name

import nnunetv2_mapo
from nnunetv2_mapo.doctor.finding import NOTE, OK, PROBLEM, Finding
from nnunetv2_mapo.doctor.requirements import NNUNET, PACKAGE, find_version, say_reinstall

INSIDE_NNUNET = Path("training", "nnUNetTrainer", "variants", "mapo")
RULE = "mapo_rule.py"  # only MAPO's folder of trainers has it


def check_installation() -> list[Finding]:
    """Look for more than one of anything, and for trainers of another version."""
    package = Path(nnunetv2_mapo.__file__).resolve().parent
    findings = [
        *check_copies("nnunetv2_mapo", package),
        *check_copies(NNUNET, find_nnunet()),
        *check_distributions(),
        *check_trainer_files(package),
    ]
    return findings or [Finding(OK, f"one installation of {PACKAGE}, in {package}")]


def check_copies(module: str, used: Path | None) -> list[Finding]:
    """Copies of a package that Python would find if the first were not there.

    Args:
        module: Its name.
        used: Folder of the one that is imported; None if there is none.
    """
    used = used and used.resolve()
    places = {Path(place or ".", module).resolve() for place in sys.path}
    others = sorted(str(p) for p in places if (p / "__init__.py").is_file() and p != used)
    if not others:
        return []
    what = f"{module} is in several places; used is {used}, not {', '.join(others)}"
    return [Finding(NOTE, what, "take the others off PYTHONPATH, or pip uninstall them")]


def check_distributions() -> list[Finding]:
    """Distributions that are installed twice, or whose metadata is another version's."""
    findings = []
    for name in (PACKAGE, NNUNET):
        found = {(str(_locate(each)), each.version) for each in _distributions(name)}
        if len(found) > 1:
            # of two places the first counts; two in one place are left of a failed upgrade
            level = NOTE if len(dict(found)) == len(found) else PROBLEM
            listed = ", ".join(f"{version} in {place}" for place, version in sorted(found))
            mend = f"pip uninstall -y {name}  (until none is left), then pip install it again"
            findings.append(
                Finding(level, f"{name} is installed {len(found)} times: {listed}", mend)
            )
    installed = find_version(PACKAGE)
    if installed and installed != nnunetv2_mapo.__version__:
        what = f"pip installed {PACKAGE} {installed}, but {nnunetv2_mapo.__version__} is imported"
        findings.append(Finding(NOTE, what, say_reinstall()))
    if any(_distributions("nnunet")):
        what = (
            "nnU-Net v1 (nnunet) is installed too; its commands begin with nnUNet_, not nnUNetv2_"
        )
        findings.append(Finding(NOTE, what))
    return findings


def _distributions(name: str) -> Iterator[metadata.Distribution]:
    for each in metadata.distributions():
        # damaged metadata has no name
        if canonicalize_name(each.metadata["Name"] or "") == name:
            yield each


def _locate(distribution: metadata.Distribution) -> Path:
    return Path(str(distribution.locate_file(""))).resolve()


def find_nnunet() -> Path | None:
    """Folder of the package nnunetv2, which is not imported for it; None if there is none."""
    try:
        spec = find_spec(NNUNET)
    except (ImportError, ValueError):
        return None
    return next((Path(p) for p in (spec and spec.submodule_search_locations) or []), None)


def external_folders() -> list[Path]:
    """Folders that `nnUNet_extTrainer` names, whether they exist or not."""
    value = os.environ.get("nnUNet_extTrainer", "")  # noqa: SIM112  # nnU-Net's own name
    return [Path(part) for part in value.split(os.pathsep) if part.strip()]


def check_trainer_files(package: Path) -> list[Finding]:
    """Compare MAPO's trainers in nnU-Net's folder with this package's and `nnUNet_extTrainer`'s.

    nnU-Net looks into its own folder first, so what is left there wins.

    Args:
        package: Folder of the package `nnunetv2_mapo` that is imported.
    """
    nnunet = find_nnunet()
    inside = nnunet and nnunet / INSIDE_NNUNET
    if inside is None or not inside.is_dir():
        return []
    findings = []
    found, expected = hash_trainers(inside), expected_trainers(package)
    if expected and found != expected:
        files = sorted(f for f in {*found, *expected} if found.get(f) != expected.get(f))
        what = (
            f"{inside} is of another version than {package}, and nnU-Net looks there first: "
            f"{', '.join(files)}"
        )
        findings.append(Finding(PROBLEM, what, say_reinstall()))
    for folder in external_folders():
        if (folder / RULE).is_file() and hash_trainers(folder) != found:
            what = f"{folder} of nnUNet_extTrainer is not used: nnU-Net finds {inside} first"
            findings.append(Finding(NOTE, what, f"{say_reinstall()}  (takes the newer files)"))
    return findings


def hash_trainers(folder: Path) -> dict[str, str]:
    """SHA-256 of each Python file of a folder by its name; line ends do not count."""
    files = sorted(folder.glob("*.py"))
    return {path.name: _hash(path.read_bytes().replace(b"\r\n", b"\n")) for path in files}


def expected_trainers(package: Path) -> dict[str, str]:
    """The same of the trainers that belong to this package; empty if nobody knows.

    Beside a checkout's package they are in `trainer_configs`; of a wheel, pip's record has them.
    """
    beside = package.parent / "trainer_configs"
    if (beside / RULE).is_file():
        return hash_trainers(beside)
    end = (NNUNET, *INSIDE_NNUNET.parts)
    recorded = {}
    for distribution in _distributions(PACKAGE):
        is_own = _locate(distribution) == package.parent
        for path in (is_own and distribution.files) or []:
            if path.parts[:-1] == end and path.suffix == ".py" and path.hash:
                digest = path.hash.value + "=" * (-len(path.hash.value) % 4)
                recorded[path.name] = base64.urlsafe_b64decode(digest).hex()
    return recorded


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
