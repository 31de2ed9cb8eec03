"""The checks that import PyTorch and nnU-Net, in a process of their own.

What they import may end the process, so each finding is written down as soon as it is there.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TextIO

from nnunetv2_mapo.doctor.dataset import Asked, check_dataset
from nnunetv2_mapo.doctor.disk import check_disk, estimate_preferences
from nnunetv2_mapo.doctor.finding import NOTE, PROBLEM, Finding, has_problem, last_line, say_unset
from nnunetv2_mapo.doctor.folders import RESULTS, find_folder
from nnunetv2_mapo.doctor.imports import MODULES, check_import, explain_failure
from nnunetv2_mapo.doctor.installation import external_folders

# The same places to import from as this process has, wherever it was started.
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nnunetv2_mapo.doctor.probe import probe; probe(*sys.argv[2:])"
)
_DEVICES, _TRAINERS = "devices", "trainers"


class Probed(NamedTuple):
    """What the other process found out.

    Attributes:
        findings: In the order of the checks.
        device: What `-device` of `nnUNetv2_train` should be.
    """

    findings: list[Finding]
    device: str


def run_probe(asked: Asked) -> Probed:
    """Run `probe` in another process and read what it wrote before it ended, however it ended."""
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.jsonl")
        report.touch()
        places = json.dumps([place or "." for place in sys.path])
        command = [sys.executable, "-c", _CODE, places, json.dumps(asdict(asked)), str(report)]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        entries = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    findings = [Finding(*entry["finding"]) for entry in entries if "finding" in entry]
    begun = [entry["begun"] for entry in entries if "begun" in entry]
    devices = [entry["device"] for entry in entries if "device" in entry]
    if done.returncode:
        reason = _say_end(done.returncode, done.stderr)
        findings.append(_explain_end(begun[-1] if begun else "", reason))
    return Probed(findings, devices[-1] if devices else "cpu")


def _say_end(returncode: int, errors: str) -> str:
    if returncode < 0:
        return f"Python was ended by {signal.Signals(-returncode).name}"
    is_error = returncode == 1 and "Traceback" in errors  # else there are but warnings
    return errors.splitlines()[-1] if is_error else f"Python ended with exit code {returncode}"


def _explain_end(step: str, reason: str) -> Finding:
    if step in MODULES:
        return explain_failure(step, reason)
    what = f"{step or 'importing the checks'}: {reason}"
    if step == _TRAINERS and external_folders():
        return Finding(PROBLEM, what, f"{say_unset('nnUNet_extTrainer')}  (or correct its modules)")
    return Finding(PROBLEM, what, explain_failure("torch", reason).mend)


def probe(asked: str, report: str) -> None:
    """Run the checks.

    Args:
        asked: JSON form of `Asked`.
        report: File to write to: a line for each check begun, each finding and the device.
    """
    with Path(report).open("a", encoding="utf-8") as file:
        _Probe(Asked(**json.loads(asked)), file).run()


class _Probe:
    def __init__(self, asked: Asked, file: TextIO) -> None:
        self._asked, self._file = asked, file

    def run(self) -> None:
        broken = [m for m in MODULES if has_problem(self._do(m, partial(check_import, m)))]
        if "torch" not in broken:
            self._do(_DEVICES, self._check_devices)
        if broken:
            what = "trainers, cases and disk were not checked: that needs the imports above"
            self._write(finding=Finding(NOTE, what))
        else:
            self._do(_TRAINERS, self._check_trainers)

    def _do(self, step: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
        self._write(begun=step)
        try:
            findings = list(check())
        except Exception as error:  # of a broken environment, which may raise anything
            findings = [Finding(PROBLEM, f"{step} could not be checked: {last_line(error)}")]
        for finding in findings:
            self._write(finding=finding)
        return findings

    def _write(self, **entry: object) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def _check_devices(self) -> list[Finding]:
        from nnunetv2_mapo.doctor.devices import (
            check_accelerators,
            check_compiling,
            read_accelerators,
        )

        seen = read_accelerators()
        self._write(device=seen.device)
        return [*check_accelerators(seen), *check_compiling(seen.device)]

    def _check_trainers(self) -> list[Finding]:
        from nnunetv2_mapo.doctor.trainers import check_trainers

        findings, trainer = check_trainers(self._asked.trainer)
        num_rounds = trainer.mapo.num_rounds if hasattr(trainer, "mapo") else 0
        return [*findings, *self._check_data(num_rounds)]

    def _check_data(self, num_rounds: int) -> list[Finding]:
        """Check cases, split and disk of a data set that is planned."""
        from nnunetv2_mapo.doctor.cases import check_cases

        _, prepared = check_dataset(self._asked) if self._asked.dataset else ([], None)
        if prepared is None:
            return []
        findings, training = check_cases(prepared, self._asked)
        results = find_folder(RESULTS)
        if num_rounds and training and results:
            estimate = estimate_preferences(prepared.cases, training, num_rounds)
            findings.append(check_disk(estimate, results, num_rounds))
        return findings
