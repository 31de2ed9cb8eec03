"""Trainings of a sweep as child processes, and how far each has come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_mapo.cli.nnunet import CommandError
from nnunetv2_mapo.cli.sweep_train import find_state, start_command

CHILD = """
import signal, sys, time
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("ended in order", flush=True)
"""


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ([], "new"),
        (["validation/summary.json"], "new"),
        (["checkpoint_best.pth"], "begun"),
        (["checkpoint_latest.pth", "checkpoint_best.pth"], "begun"),
        (["checkpoint_final.pth", "checkpoint_best.pth"], "trained"),
        (["checkpoint_final.pth", "validation/summary.json"], "finished"),
    ],
)
def test_checkpoints_and_the_validation_tell_how_far_a_fold_is(tmp_path, files, state):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_state(tmp_path) == state
    assert find_state(tmp_path / "elsewhere") == "new"


def test_a_finished_training_that_was_begun_anew_is_refused(tmp_path):
    fold = tmp_path / "fold_0"
    (fold / "validation").mkdir(parents=True)
    for name in ("checkpoint_final.pth", "checkpoint_latest.pth", "validation/summary.json"):
        (fold / name).touch()
    with pytest.raises(CommandError, match=r"fold_0 has a finished training .*begun anew") as error:
        find_state(fold)
    assert "Delete checkpoint_final.pth to continue the new one" in str(error.value)
    (fold / "checkpoint_latest.pth").unlink()
    assert find_state(fold) == "finished"


def test_output_of_every_start_is_kept_and_the_exit_code_returned(tmp_path):
    log = tmp_path / "log"
    for code in (0, 3):
        script = f"import sys; print('code', {code}); sys.exit({code})"
        assert start_command([Path(sys.executable).name, "-c", script], log) == code
    assert log.read_text().split() == ["code", "0", "code", "3"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_lets_the_child_end_in_order(tmp_path):
    log = tmp_path / "log"
    script = (
        "from pathlib import Path\n"
        "from nnunetv2_mapo.cli import sweep_train\n"
        "sweep_train._GRACE_S = 0.5\n"
        f"sweep_train.start_command(['python', '-c', {CHILD!r}], Path({str(log)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as parent:
        while not (log.exists() and log.read_text()):
            assert parent.poll() is None
            time.sleep(0.05)
        parent.send_signal(signal.SIGINT)  # to it alone; a terminal sends it to both
        _, error = parent.communicate(timeout=30)
    assert b"KeyboardInterrupt" in error
    assert log.read_text().split("\n") == ["begun", "ended in order", ""]
