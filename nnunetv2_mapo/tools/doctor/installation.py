"""Conflicting installations: two of one package, a hidden nnU-Net, trainers of another version."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name

import nnunetv2_mapo
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding, say_pip
from nnunetv2_mapo.tools.doctor.requirements import (
    NNUNET,
    PACKAGE,
    find_origin,
    find_version,
    say_reinstall,
)
from nnunetv2_mapo.tools.nnunet import find_installed_trainers

RULE = "mapo_rule.py"  # only MAPO's folder of trainers has it


def check_installation() -> list[Finding]:
    """Look for what is installed twice, hidden, or of another version."""
    package = Path(nnunetv2_mapo.__file__).resolve().parent
    findings = [*check_distributions(), *check_hidden_nnunet(), *check_trainer_files(package)]
    return findings or [Finding(OK, f"{PACKAGE} is imported from {package}")]


def check_distributions() -> list[Finding]:
    """Distributions that are installed twice, or whose metadata is another version's."""
    findings = []
    for name in (PACKAGE, NNUNET):
        found = {(str(_locate(each)), each.version) for each in _distributions(name)}
        if len(found) > 1:
            listed = ", ".join(f"{version} in {place}" for place, version in sorted(found))
            what = f"{name} is installed {len(found)} times: {listed}"
            # of two places the first counts; two in one place are left of a failed upgrade
            is_double = len(dict(found)) < len(found)
            mend = f"{say_pip('uninstall', '-y', name)}  (until none is left), then install it"
            findings.append(Finding(PROBLEM, what, mend) if is_double else Finding(NOTE, what))
    installed = find_version(PACKAGE)
    if installed and installed != nnunetv2_mapo.__version__:
        what = f"pip installed {PACKAGE} {installed}, but {nnunetv2_mapo.__version__} is imported"
        findings.append(Finding(NOTE, what, say_reinstall()))
    return findings


def _distributions(name: str) -> Iterator[metadata.Distribution]:
    for each in metadata.distributions():
        # damaged metadata has no name
        if canonicalize_name(each.metadata["Name"] or "") == name:
            yield each


def _locate(distribution: metadata.Distribution) -> Path:
    return Path(str(distribution.locate_file(""))).resolve()


def check_hidden_nnunet() -> list[Finding]:
    """Whether the folder of this package's trainers hides an nnU-Net that pip installed with -e."""
    spec = find_spec(NNUNET)
    if spec is None or spec.origin is not None or find_version(NNUNET) is None:
        return []
    what = f"nnU-Net is hidden by {', '.join(spec.submodule_search_locations or [])}"
    mend = say_pip("install", *find_origin(NNUNET), "--config-settings", "editable_mode=compat")
    return [Finding(PROBLEM, what, mend)]


def external_folders() -> list[Path]:
    """Folders that `nnUNet_extTrainer` names, whether they exist or not."""
    value = os.environ.get("nnUNet_extTrainer", "")  # noqa: SIM112  # nnU-Net's own name
    return [Path(part) for part in value.split(os.pathsep) if part.strip()]


def check_trainer_files(package: Path) -> list[Finding]:
    """Compare MAPO's trainers in nnU-Net's folder, which win, with those they should be.

    Args:
        package: Folder of the package `nnunetv2_mapo` that is imported; of a checkout the trainers
            are beside it.
    """
    inside = find_installed_trainers()
    if inside is None:
        return []
    findings = []
    beside = package.parent / "trainer_configs"
    if files := _differences(inside, beside):
        what = (
            f"{inside} is of another version than {package}, and nnU-Net looks there first: "
            f"{', '.join(files)}"
        )
        findings.append(Finding(PROBLEM, what, say_reinstall()))
    for folder in external_folders():
        if folder != beside and _differences(inside, folder):
            what = f"{folder} of nnUNet_extTrainer is not used: nnU-Net finds {inside} first"
            findings.append(Finding(NOTE, what))
    return findings


def _differences(folder: Path, other: Path) -> list[str]:
    """Python files that two folders of MAPO's trainers do not share; none if one is no such."""
    if not (other / RULE).is_file():
        return []
    names = sorted({path.name for place in (folder, other) for path in place.glob("*.py")})
    same, _, _ = filecmp.cmpfiles(folder, other, names, shallow=False)
    return [name for name in names if name not in same]
