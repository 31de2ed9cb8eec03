"""The checks of `nnUNetv2_mapo doctor`: the quick ones, then the rehearsal in a child process."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.doctor import machine
from nnunetv2_mapo.tools.doctor.dataset import Asked, describe_dataset, find_dataset
from nnunetv2_mapo.tools.doctor.finding import PROBLEM, Finding, Problem, explain
from nnunetv2_mapo.tools.doctor.machine import PREPROCESSED, RAW, RESULTS

# The same places to import from as this process has, wherever it was started.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nnunetv2_mapo.tools.doctor.run import rehearse_and_tell; rehearse_and_tell(sys.argv[2])"
)
_TOLD = 1  # exit code of a child that has printed a problem
_VERDICT = "a training cannot start: mend what is called PROBLEM, then run this again"


def run_doctor(asked: Asked) -> None:
    """Print what every check finds and, without a problem, the command that trains.

    Raises:
        CommandError: There is a problem; what comes after it was not checked.
    """
    raw = machine.check_folder(RAW, is_needed=asked.dataset is None)  # to plan, not to train
    folders = [raw, *map(machine.check_folder, (PREPROCESSED, RESULTS))]
    tell([machine.describe_versions(), *folders])
    if asked.dataset:
        try:
            asked = find_dataset(asked)
        except Problem as problem:
            tell([Finding(PROBLEM, *problem.args)])
        tell([describe_dataset(asked)])
    mend = "change who may write there, free space, or name another folder: export "
    fold = asked.model / f"fold_{asked.fold}"
    findings = machine.check_writable(fold, f"{mend}{RESULTS}=FOLDER")
    if asked.needs_split:
        otherwise = f"{mend}{PREPROCESSED}=FOLDER  (or train -f all)"
        findings += machine.check_writable(asked.folder, otherwise)
    tell(findings)
    print("Importing PyTorch ...", flush=True)
    tell(rehearse_in_child(asked))


def tell(findings: Iterable[Finding]) -> None:
    """Print findings.

    Raises:
        CommandError: There is a problem among them.
    """
    levels = []
    for finding in findings:
        print(finding, flush=True)
        levels.append(finding.level)
    if PROBLEM in levels:
        raise CommandError(_VERDICT)


def rehearse_in_child(asked: Asked) -> list[Finding]:
    """Rehearse in a process that what it imports may end; it prints what it finds.

    Returns:
        How the process ended, if not by itself.

    Raises:
        CommandError: It found a problem.
    """
    places = json.dumps([place or "." for place in sys.path])
    options = ("-X", "faulthandler", "-W", "ignore", "-c", _CHILD, places)
    command = [sys.executable, *options, json.dumps(asdict(asked))]
    code = subprocess.run(command, check=False).returncode
    if code == _TOLD:
        raise CommandError(_VERDICT)
    names = {-each.value: each.name for each in signal.Signals}  # real-time ones have none
    what = f"Python ended with {names.get(code, f'exit code {code}')}"
    return [Finding(PROBLEM, what)] if code else []


def rehearse_and_tell(asked_json: str) -> None:
    """Print what a rehearsal finds and, without a problem, the command that trains.

    Args:
        asked_json: JSON form of `Asked`.
    """
    asked, terminal = Asked(**json.loads(asked_json)), sys.stdout
    with redirect_stdout(io.StringIO()):  # nnU-Net prints much
        try:
            from nnunetv2_mapo.tools.device import choose_device
            from nnunetv2_mapo.tools.doctor.rehearsal import rehearse
        except (Exception, SystemExit) as error:
            finding = Finding(PROBLEM, f"a training cannot be imported: {explain(error)}")
            print(finding, file=terminal)
            sys.exit(_TOLD)
        for finding in rehearse(asked):
            print(finding, file=terminal, flush=True)
            if finding.level == PROBLEM:
                sys.exit(_TOLD)
    told = "Ready" if asked.dataset else "Ready, as far as can be said without a data set (-d)"
    print(f"\n{told}: {asked.say_train(choose_device(asked.device).type)}")
