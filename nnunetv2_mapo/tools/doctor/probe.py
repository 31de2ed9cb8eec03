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
from typing import Any, NamedTuple, TextIO

from nnunetv2_mapo.tools.doctor.dataset import Asked, Prepared
from nnunetv2_mapo.tools.doctor.disk import check_disk, estimate_preferences
from nnunetv2_mapo.tools.doctor.finding import NOTE, PROBLEM, Finding, guard, has_problem, say_unset
from nnunetv2_mapo.tools.doctor.folders import RESULTS, find_folder
from nnunetv2_mapo.tools.doctor.imports import MODULES, check_import, explain_failure
from nnunetv2_mapo.tools.doctor.installation import external_folders

# The same places to import from as this process has, wherever it was started.
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nnunetv2_mapo.tools.doctor.probe import probe; probe(*sys.argv[2:])"
)
_TRAINERS = "trainers"
TIMEOUT_S = 600.0


class Probed(NamedTuple):
    """What the other process found out.

    Attributes:
        findings: In the order of the checks.
        device: What `-device` of `nnUNetv2_train` should be.
    """

    findings: list[Finding]
    device: str


def run_probe(asked: Asked, prepared: Prepared | None = None) -> Probed:
    """Run `probe` in another process and read what it wrote before it ended, however it ended."""
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.jsonl")
        report.touch()
        places = json.dumps([place or "." for place in sys.path])
        about = [json.dumps(each and asdict(each), default=str) for each in (asked, prepared)]
        end = _run([sys.executable, "-c", _CODE, places, *about, str(report)])
        entries = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    findings = [Finding(*entry["finding"]) for entry in entries if "finding" in entry]
    latest = {key: value for entry in entries for key, value in entry.items()}
    if end:
        findings.append(_explain_end(latest.get("begun", ""), end))
    return Probed(findings, latest.get("device", asked.device or "cpu"))


def _run(command: list[str]) -> str:
    """Run a process; how it ended, empty if it ended well."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT_S:.0f} s"
    return _say_end(done.returncode, done.stderr) if done.returncode else ""


def _say_end(returncode: int, errors: str) -> str:
    if returncode < 0:
        names = {each.value: each.name for each in signal.Signals}  # real-time ones have none
        return f"Python was ended by {names.get(-returncode, f'signal {-returncode}')}"
    is_error = returncode == 1 and "Traceback" in errors  # else there are but warnings
    return errors.splitlines()[-1] if is_error else f"Python ended with exit code {returncode}"


def _explain_end(step: str, reason: str) -> Finding:
    if step in MODULES:
        return explain_failure(step, reason)
    what = f"{step or 'importing the checks'}: {reason}"
    if step == _TRAINERS and external_folders():
        return Finding(PROBLEM, what, f"{say_unset('nnUNet_extTrainer')}  (or correct its modules)")
    return Finding(PROBLEM, what)


def probe(asked: str, prepared: str, report: str) -> None:
    """Run the checks.

    Args:
        asked: JSON form of `Asked`.
        prepared: JSON form of `Prepared`, or null.
        report: File to write to: a line for each check begun, each finding and the device.
    """
    found = json.loads(prepared)
    if found:
        found = Prepared(**{**found, "folder": Path(found["folder"])})
    with Path(report).open("a", encoding="utf-8") as file:
        _Probe(Asked(**json.loads(asked)), found, file).run()


class _Probe:
    def __init__(self, asked: Asked, prepared: Prepared | None, file: TextIO) -> None:
        self._asked, self._prepared, self._file = asked, prepared, file
        self._trainer: Any = None

    def run(self) -> None:
        for module in MODULES:
            if has_problem(self._do(module, partial(check_import, module))):
                what = "what needs this import was not checked: devices, trainer, data, disk"
                self._write(finding=Finding(NOTE, what))
                return
        self._do("devices", self._check_devices)
        self._do(_TRAINERS, self._check_trainer)
        if self._trainer is not None:
            self._do("the beginning of the training", self._check_training)

    def _do(self, step: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
        self._write(begun=step)
        findings = guard(step, check)
        for finding in findings:
            self._write(finding=finding)
        return findings

    def _write(self, **entry: object) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def _check_devices(self) -> list[Finding]:
        from nnunetv2_mapo.tools.doctor.devices import (
            check_accelerators,
            check_compiling,
            read_accelerators,
        )

        seen = read_accelerators()
        device = self._asked.device or seen.device
        self._write(device=device)
        return [*check_accelerators(seen, self._asked.device), *check_compiling(device)]

    def _check_trainer(self) -> list[Finding]:
        from nnunetv2_mapo.tools.doctor.trainers import find_trainer

        finding, self._trainer = find_trainer(self._asked.trainer)
        return [finding]

    def _check_training(self) -> list[Finding]:
        """Check settings, cases, split, base and disk, as far as the data set is there."""
        settings, results = getattr(self._trainer, "mapo", None), find_folder(RESULTS)
        if self._prepared is None or results is None:
            if settings is not None:
                settings.validate()
            what = "its base checkpoint is looked for as soon as a data set is named with -d"
            is_based = getattr(settings, "fine_tune", False) and not self._asked.dataset
            return [Finding(NOTE, f"{self._asked.trainer} fine-tunes: {what}")] if is_based else []
        from nnunetv2_mapo.tools.doctor.rehearsal import rehearse

        findings, training = rehearse(self._trainer, self._prepared, self._asked)
        num_rounds = settings.num_rounds if settings is not None else 0
        if num_rounds and training is not None:
            folder, cases = Path(training.source_folder), training.identifiers
            estimate = estimate_preferences(folder, cases, num_rounds)
            findings.append(check_disk(estimate, results, num_rounds))
        return findings
