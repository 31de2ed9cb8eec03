"""The checks of `nnUNetv2_mapo doctor` one after the other, and the verdict."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.doctor.dataset import Asked, Prepared, check_dataset
from nnunetv2_mapo.tools.doctor.devices import check_processor
from nnunetv2_mapo.tools.doctor.finding import OK, PROBLEM, Finding, guard, last_line
from nnunetv2_mapo.tools.doctor.folders import (
    PREPROCESSED,
    RAW,
    RESULTS,
    check_folder,
    check_writable,
    say_elsewhere,
)
from nnunetv2_mapo.tools.doctor.installation import check_installation
from nnunetv2_mapo.tools.doctor.probe import run_probe
from nnunetv2_mapo.tools.doctor.requirements import check_requirements
from nnunetv2_mapo.tools.doctor.trainers import check_external_folders


def run_doctor(arguments: argparse.Namespace) -> None:
    """Print what every check finds, then the verdict.

    Raises:
        CommandError: There is a problem.
    """
    asked = Asked(**{field.name: getattr(arguments, field.name) for field in fields(Asked)})
    problems = 0
    for check in (check_requirements, check_installation, check_external_folders, check_processor):
        problems += tell(guard(check.__name__, check))
    data, prepared = check_dataset(asked) if asked.dataset else ([], None)
    problems += tell(guard("folders", partial(check_folders, asked, prepared)))
    problems += tell(data)
    device = "cpu"
    try:
        probed = run_probe(asked, prepared)
    except (OSError, ValueError) as error:
        what = f"no second Python can be started to import PyTorch: {last_line(error)}"
        problems += tell([Finding(PROBLEM, what, "free memory and disk (TMPDIR), then try again")])
    else:
        problems += tell(probed.findings)
        device = probed.device
    if problems:
        keep = "" if os.name == "nt" else ": add it to ~/.bashrc to keep it"
        message = (
            f"{problems} problem{'s'[: problems > 1]} to mend, from the top; then run this again. "
            f"A variable lasts as long as the terminal{keep}."
        )
        raise CommandError(message)
    if prepared:
        asked = replace(asked, configuration=prepared.configuration)
    told = "Ready" if prepared else "Ready, as far as can be said without a data set (-d)"
    print(f"\n{told}: {asked.say_train(device)}")


def check_folders(asked: Asked, prepared: Prepared | None) -> list[Finding]:
    """Check nnU-Net's three folders for a training.

    Args:
        asked: The training.
        prepared: Its data set; None if that is not planned or not known.
    """
    findings = [
        check_folder(RAW, is_needed=not asked.dataset),  # else the data set's findings tell
        check_folder(PREPROCESSED),
        check_folder(RESULTS),
    ]
    if any(finding.level != OK for finding in findings[1:]):
        return findings
    results = prepared.results(asked) if prepared else Path(os.environ[RESULTS])
    findings += check_writable(results, say_elsewhere(RESULTS))
    if prepared is None:
        folder = Path(os.environ[PREPROCESSED])
        findings += check_writable(folder, say_elsewhere(PREPROCESSED))
    elif prepared.is_split_needed(asked):
        mend = "let its owner train a fold first, which writes splits_final.json, or train -f all"
        findings += check_writable(prepared.folder, mend)
    return findings


def tell(findings: Iterable[Finding]) -> int:
    """Print findings; the number of problems."""
    problems = 0
    for finding in findings:
        print(finding, flush=True)
        problems += finding.level == PROBLEM
    return problems
