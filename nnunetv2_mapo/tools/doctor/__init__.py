"""Can a training start here? Checks that end in findings, each with the command that mends it."""

from __future__ import annotations

import io
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from tempfile import TemporaryDirectory
from typing import TextIO

from nnunetv2_mapo.support.errors import CommandError, MAPOError
from nnunetv2_mapo.tools.doctor import checks
from nnunetv2_mapo.tools.doctor.checks import PROBLEM, Asked, Finding, Problem


def run_doctor(asked: Asked) -> None:
    """Print what every check finds and, without a problem, the command that trains.

    Raises:
        CommandError: There is a problem; what comes after it was not checked.
    """
    raw = checks.check_folder(checks.RAW, is_needed=asked.dataset is None)  # to plan, not to train
    folders = map(checks.check_folder, (checks.PREPROCESSED, checks.RESULTS))
    tell([checks.describe_versions(), raw, *folders])
    if asked.dataset:
        try:
            asked = checks.find_dataset(asked)
        except Problem as problem:
            tell([Finding(PROBLEM, *problem.args)])
    print("Importing PyTorch ...", file=sys.stderr, flush=True)
    terminal = sys.stdout
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # nnU-Net prints much
        warnings.simplefilter("ignore")
        tell(rehearse(asked), terminal)
    from nnunetv2_mapo.support.device import choose_device

    told = "Ready" if asked.dataset else "Ready, as far as can be said without a data set (-d)"
    print(f"\n{told}: {asked.say_train(choose_device(asked.device).type)}")


def tell(findings: Iterable[Finding], file: TextIO | None = None) -> None:
    """Print findings; raise `CommandError` if there is a problem among them."""
    levels = []
    for finding in findings:
        print(finding, file=file, flush=True)
        levels.append(finding.level)
    if PROBLEM in levels:
        message = "a training cannot start: mend what is called PROBLEM, then run this again"
        raise CommandError(message)


def rehearse(asked: Asked) -> Iterator[Finding]:
    """Begin a training on the CPU and leave no trace of it; a problem is the last finding."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            from nnunetv2_mapo.tools.doctor.rehearsal import begin

            yield from begin(asked, scratch)
        except MAPOError as error:  # it says what to do
            yield Finding(PROBLEM, str(error).replace(scratch, str(asked.folder)))
        except (Exception, SystemExit) as error:  # trainers and imports may raise anything
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"nnUNetv2_train would fail: {type(error).__name__}: {error}"
            yield Finding(PROBLEM, f"{what}\n{place.filename}, line {place.lineno}")
