from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_mapo.guards.start import InUseError, lock_folder, set_aside

HOLD = """
import os, sys, time
from pathlib import Path
from nnunetv2_mapo.guards.start import lock_folder
lock_folder(Path(sys.argv[1]))
if sys.argv[2:]:
    if os.fork() == 0:  # a worker that outlives its parent
        print(os.getpid(), flush=True)
        time.sleep(60)
else:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def hold(folder, *options: str) -> tuple[subprocess.Popen, int]:
    """A process that holds the lock, and the number of the process that said so."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *options], stdout=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    process, number = hold(tmp_path)
    with process:
        with pytest.raises(InUseError) as error:
            lock_folder(tmp_path)
        process.kill()
    for part in (str(tmp_path), f"process {number} on {socket.gethostname()} since 20"):
        assert part in str(error.value)


@pytest.mark.parametrize("options", [(), ("worker",)], ids=["alone", "a worker lives on"])
def test_a_killed_process_leaves_no_lock(tmp_path, options):
    process, number = hold(tmp_path, *options)
    process.kill()
    process.wait()
    lock_folder(tmp_path)
    assert (tmp_path / "mapo.lock").read_text().startswith(f"process {os.getpid()} on ")
    if options:
        os.kill(number, 9)
    process.stdout.close()


def test_other_folders_are_free(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    process, _ = hold(tmp_path / "a")
    with process:
        lock_folder(tmp_path / "b")
        process.kill()


def test_an_earlier_training_is_set_aside_and_not_taken_for_the_new_one(tmp_path):
    files = ["checkpoint_final.pth", "preferences/round_01/a.b2nd", "validation/summary.json"]
    for number in (1, 2):
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(str(number))
        assert set_aside(tmp_path) == tmp_path / f"earlier_{number}"
        assert set_aside(tmp_path) is None
    for number in (1, 2):
        for name in files:
            assert (tmp_path / f"earlier_{number}" / name).read_text() == str(number)


def test_the_checkpoint_that_continuing_looks_for_first_is_moved_last(tmp_path, monkeypatch):
    for name in ("latest", "final", "best"):
        (tmp_path / f"checkpoint_{name}.pth").touch()
    moved, rename = [], Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda *paths: moved.append(paths[0].name) or rename(*paths)
    )
    set_aside(tmp_path)
    assert moved[-1] == "checkpoint_final.pth"


def test_the_same_process_may_begin_again(tmp_path):
    lock_folder(tmp_path)
    lock_folder(tmp_path)


def test_a_file_system_without_locks_is_left_unlocked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock_folder(tmp_path)
    assert (tmp_path / "mapo.lock").read_text() == ""
