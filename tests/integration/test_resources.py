"""A full disk, no memory, dead workers, numbers that are none: what was done before stays."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from boxes import is_rehearsal
from disk import full_disk
from test_training import read_log, read_manifests, stop_in_epoch

from nnunetv2_mapo import trainer as mapo
from nnunetv2_mapo.guards import start
from nnunetv2_mapo.guards.start import InUseError
from nnunetv2_mapo.guards.steps import MOST_IN_A_ROW, NotFiniteError
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.support.device import OutOfMemoryError
from nnunetv2_mapo.support.files import WriteError

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]


def fill_disk_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, num_bytes: int) -> None:
    """Let the disk be full during a function of this module, class or trainer."""
    method = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        with full_disk(num_bytes):
            return method(*arguments)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "name", "file"),
    [
        (Round, "write_case", "case_0.b2nd"),
        (Round, "write_manifest", "manifest.json"),
        (mapo, "write_reference", "reference.pth"),
        ("trainer", "save_checkpoint", "checkpoint_best.pth"),
    ],
)
def test_a_full_disk_is_named_and_the_training_goes_on_once_there_is_space(
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    file: str,
) -> None:
    trainer = make_trainer()
    trainer.initialize()
    with monkeypatch.context() as patch:
        fill_disk_in(patch, trainer if owner == "trainer" else owner, name, 1000)
        with pytest.raises(WriteError) as error:
            trainer.run_training()
    folder = Path(trainer.output_folder)
    for part in (str(folder), file, "MB are free there", "goes on with --c"):
        assert part in str(error.value)
    assert not list(folder.rglob(file))
    assert not list(folder.rglob("*unfinished"))
    again = make_trainer(continue_training=True)
    again.run_training()
    assert sorted(read_manifests(again)) == ["round_01", "round_02"]
    if file in ("case_0.b2nd", "manifest.json", "reference.pth"):  # the warm-up was not lost
        assert "MAPO: continued after 2 epochs" in read_log(again)


def test_a_full_disk_leaves_the_checkpoint_before(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    stop_in_epoch(trainer, epoch=3)
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    before = latest.read_bytes()
    with full_disk(len(before) // 2), pytest.raises(WriteError, match=r"checkpoint_latest\.pth"):
        trainer.save_checkpoint(str(latest))
    assert latest.read_bytes() == before


def test_a_picture_that_does_not_fit_does_not_stop_a_training(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk_in(monkeypatch, mapo, "plot_progress", 1000)
    trainer = make_trainer()
    trainer.run_training()
    assert trainer.current_epoch == 6
    assert "WARNING" in read_log(trainer)
    assert "progress_mapo.png could not be written" in read_log(trainer)


def test_no_memory_for_an_image_keeps_what_was_mined(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_candidates, calls = Miner.find_candidates, []

    def fail_after_two(self: Miner, image: Any) -> Any:
        calls.append(self.images_per_forward)
        if len(calls) > 2:
            message = "CUDA out of memory"
            raise torch.cuda.OutOfMemoryError(message)
        return find_candidates(self, image)

    trainer = make_trainer()
    with monkeypatch.context() as patch:
        patch.setattr(Miner, "find_candidates", fail_after_two)
        with pytest.raises(OutOfMemoryError, match="free memory there"):
            trainer.run_training()
    assert calls == [2, 2, 2, 1]
    assert "mining ran out of memory: 1 images a forward pass now" in read_log(trainer)
    again = make_trainer(continue_training=True)
    again.run_training()
    assert "2 of 4 cases are in" in read_log(again)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # nnU-Net's
def test_a_dead_worker_ends_the_training_with_nnunets_error(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    stop_in_epoch(trainer, epoch=2)  # the pairs of round 1 are there
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    here, open_stack = os.getpid(), Round.open_stack

    def die_in_a_worker(self: Round, identifier: str) -> Any:
        if os.getpid() != here:
            os._exit(1)
        return open_stack(self, identifier)

    monkeypatch.setattr(Round, "open_stack", die_in_a_worker)
    again = make_trainer(continue_training=True)
    with pytest.raises(RuntimeError, match="background workers are no longer alive"):
        again.run_training()


def spoil(trainer: Any, steps: Callable[[int], bool]) -> None:
    """Put NaN into the images of some of the steps."""
    train_step, done = trainer.train_step, []

    def step(batch: dict[str, Any]) -> dict[str, Any]:
        if is_rehearsal(trainer):
            return train_step(batch)
        done.append(batch)
        if steps(len(done)):
            batch["data"] = torch.full_like(batch["data"], math.nan)
        return train_step(batch)

    trainer.train_step = step


@pytest.mark.parametrize("step", [2, 8], ids=["warm-up", "preferences"])
def test_a_step_that_is_not_finite_is_skipped_counted_and_said(
    make_trainer: MakeTrainer, step: int
) -> None:
    trainer = make_trainer()
    spoil(trainer, lambda number: number == step)
    trainer.run_training()
    assert "MAPO: WARNING: 1 of 3 steps were not finite and skipped" in read_log(trainer)
    assert all(weight.isfinite().all() for weight in trainer.network.parameters())
    assert all(math.isfinite(loss) for loss in trainer.logger.get_value("train_losses", None))


def test_a_training_without_a_finite_step_stops_and_says_what_was_seen(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer()
    trainer.num_iterations_per_epoch = 5
    spoil(trainer, lambda number: number > 8)
    with pytest.raises(NotFiniteError) as error:
        trainer.run_training()
    assert f"{MOST_IN_A_ROW} training steps in a row" in str(error.value)
    for value in ("in epoch 5 with case_", "loss/supervised nan", "rewards/margins "):
        assert value in str(error.value)
    assert all(weight.isfinite().all() for weight in trainer.network.parameters())


def test_a_damaged_case_is_mined_again_when_a_training_is_continued(
    make_trainer: MakeTrainer,
) -> None:
    stopped = make_trainer()
    stop_in_epoch(stopped, epoch=3)
    before = read_manifests(stopped)["round_01"]["cases"]
    path = Path(stopped.output_folder) / "preferences/round_01/case_2.b2nd"
    path.write_bytes(path.read_bytes()[:-100])
    trainer = make_trainer(continue_training=True)
    trainer.run_training()
    assert "MAPO: WARNING: files of ['case_2'] in" in read_log(trainer)
    after = read_manifests(trainer)["round_01"]["cases"]
    assert list(after) == list(before)
    # the checkpoint of a round's beginning holds the policy that mined it
    assert after["case_2"]["samples"] == before["case_2"]["samples"]


HOLD = """
import sys, time
from pathlib import Path
from nnunetv2_mapo.guards.start import lock_folder
lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_training_of_a_fold_stops_at_once_and_changes_nothing(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(start, "lock_folder", lambda _: None)  # as if by another process
        stopped = make_trainer()
        stop_in_epoch(stopped, epoch=3)
    folder = Path(stopped.output_folder)
    names = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.suffix != ".txt"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        for continue_training in (False, True):
            trainer = make_trainer(continue_training=continue_training)
            with pytest.raises(
                InUseError, match=rf"is being trained in by process {other.pid} on "
            ):
                trainer.run_training()
        assert all(path.stat().st_mtime_ns == time for path, time in names.items())
        make_trainer(fold=1).run_training()  # at the same time
        other.kill()
    make_trainer(continue_training=True).run_training()
