"""Kill a training again and again and continue it: nothing is lost and the end is the same."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from boxes import DATASET

from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.support.files import hash_file, read_sealed

NAME = "nnUNetTrainerSeeded_MAPO_tiny"
CASES = [f"case_{number}" for number in range(4)]
STORE, TRAINER = "nnunetv2_mapo.method.store", "nnunetv2_mapo.trainer:MAPOTrainer"
STOCK = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer"
# What each kill meets was continued after the one before. The training has two epochs of warm-up
# and two rounds of two epochs, each of three steps, after one that is rehearsed.
KILLS = {
    "first step": (f"{TRAINER}.train_step", 2, "before"),
    "half of the first checkpoint": ("torch:save", 1, "half"),
    "a whole checkpoint without its name": ("torch:save", 1, "after"),
    "a checkpoint about to get its name": ("pathlib:Path.replace", 1, "before"),
    "second epoch of the warm-up": (f"{TRAINER}.train_step", 5, "before"),
    "end of the warm-up": (f"{TRAINER}._start_from_warmup", 1, "before"),
    "half of the reference": ("pathlib:Path.write_bytes", 1, "half"),
    "the reference written": ("nnunetv2_mapo.trainer:write_reference", 1, "after"),
    "the round begun": (f"{TRAINER}._open_round", 1, "before"),
    "inside the first case": ("nnunetv2_mapo.method.sampling:DropoutSampler.segment", 1, "after"),
    "half of a case": ("pathlib:Path.write_bytes", 1, "half"),
    "a case without its record": (f"{STORE}:write_sealed", 1, "before"),
    "half of a record, behind a whole case": ("pathlib:Path.write_bytes", 4, "half"),
    "between two cases": (f"{STORE}:Round.write_case", 1, "after"),
    "before the manifest": (f"{STORE}:Round.write_manifest", 1, "before"),
    "half of the manifest": ("pathlib:Path.write_bytes", 1, "half"),
    "second epoch of round 1": (f"{TRAINER}.train_step", 6, "before"),
    "end of round 1": (f"{TRAINER}._save_latest", 1, "before"),
    "round 2, third case": ("nnunetv2_mapo.method.sampling:DropoutSampler.segment", 9, "before"),
    "round 2 complete": (f"{STORE}:Round.write_manifest", 1, "after"),
    "round 1 about to be thinned out": ("nnunetv2_mapo.trainer:thin_out_earlier", 1, "before"),
    "a record deleted without its case": ("pathlib:Path.unlink", 1, "after"),
    "the last step": (f"{TRAINER}.train_step", 7, "after"),
    "before the final checkpoint": (f"{STOCK}.on_train_end", 1, "before"),
    "the final checkpoint beside the latest one": ("os:remove", 1, "before"),
}


@pytest.fixture
def train(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """Run `nnUNetv2_train` to its end, or to where it is killed; returns its exit code."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("crash.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdin
    assert server.stdout

    def run(results: Path, *options: str, kill: Any = None) -> int:
        assert server.stdin
        assert server.stdout
        arguments = [DATASET, "3d_fullres", "0", "-tr", NAME, "-device", "cpu", *options]
        command = {"arguments": arguments, "kill": kill, "results": str(results)}
        server.stdin.write(json.dumps(command) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    with server:
        yield run
        server.stdin.close()


def find_folder(results: Path) -> Path:
    return results / DATASET / f"{NAME}__nnUNetPlans__3d_fullres" / "fold_0"


def read_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=False)
    return checkpoint


class Watch:
    """What must not change any more, as it was after each kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference: str | None = None
        self.cases: dict[Path, tuple[str | None, int]] = {}

    def look(self) -> None:
        """Assert that all files are whole, and that what was finished is still there."""
        if not self.folder.is_dir():
            return
        begun = [read_checkpoint(path)["mapo"]["begun"] for path in self.folder.glob("*.pth")
                 if path.name != "reference.pth"]  # fmt: skip
        reference = hash_file(self.folder / "reference.pth")
        if self.reference:
            assert reference == self.reference
        if reference and any(each["round"] for each in begun):
            self.reference = reference
            torch.load(self.folder / "reference.pth", weights_only=True)
        for manifest in self.folder.glob("preferences/*/manifest.json"):
            content = read_sealed(manifest)
            assert content
            assert list(content["cases"]) == CASES
        for path, seen in self.cases.items():
            if (path.parents[1] / "round_02/manifest.json").exists() and not path.exists():
                assert path.parent.name == "round_01"  # no longer needed
                continue
            assert (hash_file(path), path.stat().st_mtime_ns) == seen
        for path in self.folder.glob("preferences/*/*.b2nd.json"):
            mined = Round(path.parent, (read_sealed(path) or {})["origin"])
            identifier = path.name.removesuffix(".b2nd.json")
            assert list(mined.find_finished([identifier]).records) == [identifier]
            case = mined.path(identifier)
            self.cases[case] = (hash_file(case), case.stat().st_mtime_ns)


def read_pairs(folder: Path) -> Iterator[tuple[tuple[str, str], tuple[Any, bytes]]]:
    """Samples and voxels of every case; the order of the blocks in a file may differ."""
    for path in sorted(folder.glob("preferences/*/*.b2nd")):
        mined = Round(path.parent, {})
        record = read_sealed(mined.record_path(path.stem)) or {}
        yield (
            (path.parent.name, path.stem),
            (
                record["samples"],
                mined.open_stack(path.stem)[:].tobytes(),
            ),
        )


def assert_same_end(folder: Path, expected: Path) -> None:
    """The same weights, momentum and logged values; only the times differ."""
    ours, theirs = (read_checkpoint(each / "checkpoint_final.pth") for each in (folder, expected))
    assert ours["current_epoch"] == theirs["current_epoch"] == 6
    for key in ("network_weights", "optimizer_state", "_best_ema"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)
    assert ours["mapo"]["begun"] == theirs["mapo"]["begun"]
    for key, values in theirs["logging"].items():
        if "timestamps" not in key:
            torch.testing.assert_close(
                torch.tensor(ours["logging"][key]), torch.tensor(values), rtol=0, atol=0,
                equal_nan=True,
            )  # fmt: skip
    assert dict(read_pairs(folder)) == dict(read_pairs(expected))
    assert {path.name for path in folder.iterdir() if path.suffix in (".pth", "")} == {
        path.name for path in expected.iterdir() if path.suffix in (".pth", "")
    }


def test_a_training_that_is_killed_everywhere_ends_like_one_that_is_not(
    train: Callable[..., int], tmp_path: Path
) -> None:
    assert train(tmp_path / "whole") == 0
    results = tmp_path / "killed"
    watch = Watch(find_folder(results))
    for name, kill in KILLS.items():
        assert train(results, "--c", kill=kill) == -signal.SIGKILL, name
        watch.look()
    assert train(results, "--c") == 0
    watch.look()
    assert_same_end(find_folder(results), find_folder(tmp_path / "whole"))
    log = "".join(path.read_text() for path in sorted(watch.folder.glob("*.txt")))
    for said in (
        "MAPO: continued after 1 epoch, in the warm-up",
        "MAPO: continued after 2 epochs, in round 1",
        "1 of 4 cases are in",
        "MAPO: continued after 4 epochs, in round 2",
        "MAPO: continued after 6 epochs: the training is complete",
    ):
        assert said in log


@pytest.mark.slow
def test_the_real_command_survives_kills_at_random_moments(boxes: Path, tmp_path: Path) -> None:
    script = str(Path(sys.executable).with_name("nnUNetv2_train"))
    command = [script, DATASET, "3d_fullres", "0", "-tr", NAME, "-device", "cpu", "--c"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(results: Path, seconds: float | None) -> bool:
        """Whether it came to its end."""
        results.mkdir(exist_ok=True)
        with (results / "output.txt").open("a") as output:
            process = subprocess.Popen(
                command, env={**environment, "nnUNet_results": str(results)}, stdout=output,
                stderr=output,
            )  # fmt: skip
            try:
                return process.wait(seconds) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return False

    assert run(tmp_path / "whole", None)
    rng = random.Random(0)
    num_kills = num_ends = 0
    while num_kills < 30 or not num_ends:
        results = tmp_path / f"killed_{num_ends}"
        watch = Watch(find_folder(results))
        while not run(results, rng.uniform(8, 40)):
            num_kills += 1
            watch.look()
        watch.look()
        assert_same_end(watch.folder, find_folder(tmp_path / "whole"))
        num_ends += 1
    print(f"{num_kills} kills in {num_ends} trainings")
