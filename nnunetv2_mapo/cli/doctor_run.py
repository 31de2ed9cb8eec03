"""The checks of `nnUNetv2_mapo doctor` one after the other, and the verdict."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import fields, replace

from nnunetv2_mapo.cli.nnunet import CommandError
from nnunetv2_mapo.doctor.dataset import Asked, Prepared, check_dataset
from nnunetv2_mapo.doctor.devices import check_processor
from nnunetv2_mapo.doctor.finding import PROBLEM, Finding, last_line
from nnunetv2_mapo.doctor.folders import PREPROCESSED, RAW, RESULTS, check_folder
from nnunetv2_mapo.doctor.installation import check_installation
from nnunetv2_mapo.doctor.probe import run_probe
from nnunetv2_mapo.doctor.requirements import check_requirements
from nnunetv2_mapo.doctor.trainers import check_external_folders


def run_doctor(arguments: argparse.Namespace) -> None:
    """Print what every check finds, then the verdict.

    Raises:
        CommandError: There is a problem.
    """
    asked = Asked(**{field.name: getattr(arguments, field.name) for field in fields(Asked)})
    problems = 0
    for check in (check_requirements, check_installation, check_external_folders, check_processor):
        problems += tell(guard(check))
    prepared: list[Prepared] = []
    data = guard(lambda: _check_data(asked, prepared))
    problems += tell(guard(lambda: check_folders(*prepared)))
    problems += tell(data)
    device = "cpu"
    try:
        probed = run_probe(asked)
    except (OSError, ValueError) as error:
        what = f"no second Python can be started to import PyTorch: {last_line(error)}"
        problems += tell([Finding(PROBLEM, what, "free memory and disk (TMPDIR), then try again")])
    else:
        problems += tell(probed.findings)
        device = probed.device
    if problems:
        message = (
            f"{problems} problem{'s'[: problems > 1]} to mend, from the top; then run this again. "
            "An export lasts as long as the terminal: add it to ~/.bashrc to keep it."
        )
        raise CommandError(message)
    if prepared:
        asked = replace(asked, configuration=prepared[0].configuration)
    told = "Ready" if prepared else "Ready, as far as can be said without a data set (-d)"
    print(f"\n{told}: {asked.say_train(device)}")


def _check_data(asked: Asked, prepared: list[Prepared]) -> list[Finding]:
    """Findings of the data set; appends it to the list if it is planned."""
    findings, found = check_dataset(asked) if asked.dataset else ([], None)
    prepared += [found] if found else []
    return findings


def check_folders(prepared: Prepared | None = None) -> list[Finding]:
    """Check nnU-Net's three folders for a training.

    Args:
        prepared: Its data set, if that is planned: then the raw data is not needed, and nothing but
            a missing split is written beside the preprocessed data.
    """
    is_split = prepared is not None and (prepared.folder / "splits_final.json").is_file()
    return [
        check_folder(RAW, is_needed=prepared is None, is_written=False),
        check_folder(PREPROCESSED, is_written=not is_split),
        check_folder(RESULTS),
    ]


def guard(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Findings of a check, whatever it raises in a broken environment."""
    try:
        return list(check())
    except Exception as error:
        what = f"{getattr(check, '__name__', 'a check')} failed: {last_line(error)}"
        return [Finding(PROBLEM, what, "pip install --force-reinstall nnunetv2-mapo")]


def tell(findings: Iterable[Finding]) -> int:
    """Print findings; the number of problems."""
    problems = 0
    for finding in findings:
        print(finding, flush=True)
        problems += finding.level == PROBLEM
    return problems
