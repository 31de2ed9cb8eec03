"""Versions: what nnU-Net and this package require, against what is installed."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

import nnunetv2_mapo
from nnunetv2_mapo.tools.doctor.finding import NOTE, OK, PROBLEM, Finding, say_pip

PACKAGE, NNUNET = "nnunetv2-mapo", "nnunetv2"


def check_requirements() -> list[Finding]:
    """Compare what this package and nnU-Net require with what is installed, from the metadata."""
    versions = Finding(OK, _describe_versions())
    return [versions, *_check_each(PACKAGE), *_check_each(NNUNET)]


def _describe_versions() -> str:
    names = (NNUNET, "torch", "torchvision", "monai")
    versions = ", ".join(f"{name} {find_version(name) or 'missing'}" for name in names)
    return f"Python {platform.python_version()}, {PACKAGE} {nnunetv2_mapo.__version__}, {versions}"


def find_version(name: str) -> str | None:
    """Version of an installed distribution by its metadata; None if there is none."""
    try:
        return metadata.version(name) or None  # damaged metadata has none
    except (metadata.PackageNotFoundError, KeyError):
        return None


def find_requirement(name: str) -> str:
    """How pip is asked for a distribution that this package or nnU-Net requires."""
    for requirement in (*_read(PACKAGE), *_read(NNUNET)):
        if canonicalize_name(requirement.name) == canonicalize_name(name):
            return f"{requirement.name}{requirement.specifier}"
    return name


def _explain_missing(name: str) -> Finding:
    if name == NNUNET:
        what = f"{NNUNET} is not installed"
        return Finding(PROBLEM, what, say_pip("install", find_requirement(NNUNET)))
    what = f"{PACKAGE} is used without being installed, so nobody knows here what it requires"
    return Finding(NOTE, what, say_reinstall())


def say_reinstall(name: str = PACKAGE) -> str:
    """Command that installs a package anew from where it came from, and nothing else."""
    checkout = Path(nnunetv2_mapo.__file__).resolve().parents[1]
    if name == PACKAGE and (checkout / "pyproject.toml").is_file():
        return say_pip("install", "-e", str(checkout))
    return say_pip("install", "--force-reinstall", "--no-deps", *find_origin(name))


def find_origin(name: str) -> list[str]:
    """How pip is told of the place that it installed a package from (PEP 610)."""
    try:
        record = json.loads(metadata.distribution(name).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        record = {}
    address: str = record.get("url", "")
    if not address:
        return [find_requirement(name)]
    if "vcs_info" in record:
        version = record["vcs_info"].get("requested_revision")
        return [f"{record['vcs_info']['vcs']}+{address}" + (f"@{version}" if version else "")]
    if address.startswith("file:"):
        address = url2pathname(urlsplit(address).path)
    return ["-e", address] if record.get("dir_info", {}).get("editable") else [address]


def _read(source: str) -> list[Requirement]:
    """What a distribution requires here, without its extras; nothing if it is not installed."""
    try:
        required = map(Requirement, metadata.requires(source) or [])
        return [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    except metadata.PackageNotFoundError:
        return []


def _check_each(source: str) -> list[Finding]:
    if find_version(source) is None:
        return [_explain_missing(source)]
    findings, num_met = [], 0
    for requirement in _read(source):
        wanted = f"{requirement.name}{requirement.specifier}"
        installed = find_version(requirement.name)
        if installed is None:
            what = f"{source} requires {wanted}, which is not installed"
        elif not _is_in(requirement, installed):
            what = f"{source} requires {wanted}, installed is {installed}"
        else:
            num_met += 1
            continue
        findings.append(Finding(PROBLEM, what, say_pip("install", wanted)))
    if not findings:
        findings.append(Finding(OK, f"{num_met} of {num_met} packages that {source} requires fit"))
    return findings


def _is_in(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:  # a private build's; it may well fit
        return True
