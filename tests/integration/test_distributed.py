"""Two ranks with the gloo backend on the CPU; each test starts them with `rank.py`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_mapo.support.files import hash_weights

MakeTrainer = Callable[..., Any]
HERE, DATASET = Path(__file__).parent, "Dataset990_Boxes"


def run_ranks(folder: Path, name: str, task: str, fold: int = 0) -> list[dict[str, Any]]:
    """Report of each rank; their results are in `folder`."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"nnUNet_results": str(folder / "results")}
    arguments = [str(folder), DATASET, name, str(fold), task]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", HERE / "rank.py", str(rank), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output
    return [json.loads((folder / f"{task}_{rank}.json").read_text()) for rank in range(2)]


def fold_folder(folder: Path, name: str, fold: int = 0) -> Path:
    return folder / f"results/{DATASET}/{name}__nnUNetPlans__3d_fullres/fold_{fold}"


@pytest.fixture(scope="module")
def trained(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return folder, run_ranks(folder, "nnUNetTrainerTiny_MAPO_tiny", "train")


def test_ranks_share_the_cases_and_see_all_pairs(trained: tuple[Path, list[Any]]) -> None:
    _, (first, second) = trained
    assert first["batch_size"] == second["batch_size"] == 1
    assert first["mined"] == ["case_0", "case_2"] * 2  # in each of two rounds
    assert second["mined"] == ["case_1", "case_3"] * 2
    assert first["channels"] == second["channels"] == {f"case_{n}": 5 for n in range(4)}
    assert first["summary"] == second["summary"]
    num_pairs, gaps = first["summary"]
    assert num_pairs > 0
    assert len(gaps) == 4


def test_ranks_end_with_equal_weights_and_logged_values(trained: tuple[Path, list[Any]]) -> None:
    _, (first, second) = trained
    assert first["weights"] == second["weights"]
    assert str(first["logged"]) == str(second["logged"])  # as text: NaN is NaN
    assert first["logged"]["loss/dpo"][-1] > 0


def test_ranks_agree_on_the_quantile_and_on_the_moving_average(boxes: Path, tmp_path: Path) -> None:
    first, second = run_ranks(tmp_path, "nnUNetTrainerTiny_MAPO_tinyaverage", "train")
    assert first["summary"] == second["summary"]
    num_pairs, gaps = first["summary"]
    assert 0 < num_pairs < len(gaps)
    assert first["weights"] == second["weights"]
    assert first["reference"] == second["reference"] != first["weights"]
    measured = first["logged"]["validation/metric"]
    assert measured == second["logged"]["validation/metric"]
    assert all(0 <= value <= 1 for value in measured)


def test_ranks_take_the_rates_that_the_first_one_found(boxes: Path, tmp_path: Path) -> None:
    name = "nnUNetTrainerTiny_MAPO_tinyrates"
    first, second = run_ranks(tmp_path, name, "train")
    assert first["weights"] == second["weights"]
    log = "".join(path.read_text() for path in fold_folder(tmp_path, name).glob("*.txt"))
    assert log.count("candidates at 3 dropout rates up to") == 2  # once in each of two rounds
    for number in (1, 2):
        folder = fold_folder(tmp_path, name) / f"preferences/round_{number:02d}"
        values = json.loads((folder / "manifest.json").read_text())["values"]
        assert values == json.loads((folder / "candidates.json").read_text())["values"]
        assert values[0] == 0 < values[1] < values[2] <= 0.5


def test_only_the_first_rank_writes_what_there_is_once(trained: tuple[Path, list[Any]]) -> None:
    folder, (first, second) = trained
    assert first["written"] == ["plot_progress", "save", "write_manifest", "write_reference"]
    assert second["written"] == []
    results = fold_folder(folder, "nnUNetTrainerTiny_MAPO_tiny")
    logs = "".join(path.read_text() for path in results.glob("training_log*.txt"))
    assert logs.count("MAPO: mining round 1") == 1
    assert not list(results.rglob("*unfinished"))
    assert {"checkpoint_final.pth", "reference.pth", "progress_mapo.png"} <= {
        path.name for path in results.iterdir()
    }


def test_pairs_of_two_ranks_are_those_of_one_process(
    make_trainer: MakeTrainer, trained: tuple[Path, list[Any]]
) -> None:
    results = fold_folder(trained[0], "nnUNetTrainerTiny_MAPO_tiny")
    shared = json.loads((results / "preferences/round_01/manifest.json").read_text())
    trainer = make_trainer()
    trainer.initialize()
    # the reference is what round 1 is mined with
    weights = torch.load(results / "reference.pth", weights_only=True)
    trainer.network.load_state_dict(weights)
    assert shared["origin"]["policy"] == hash_weights(weights)
    alone = json.loads((trainer._mine(1).folder / "manifest.json").read_text())
    assert {name: case["samples"] for name, case in alone["cases"].items()} == {
        name: case["samples"] for name, case in shared["cases"].items()
    }


def test_gradients_are_the_mean_over_the_ranks(
    make_trainer: MakeTrainer, boxes: Path, tmp_path: Path
) -> None:
    name = "nnUNetTrainerTiny_MAPO_steady"
    run_ranks(tmp_path / "ranks", name, "step")
    first, second = (torch.load(tmp_path / f"ranks/step_{rank}.pth") for rank in range(2))
    reference = fold_folder(tmp_path / "ranks", name) / "reference.pth"
    trainer = make_trainer(name)
    trainer.on_train_start()
    trainer.network.load_state_dict(torch.load(reference, weights_only=True))
    trainer.current_epoch = trainer.schedule.stages[0].end_epoch
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    for group in trainer.optimizer.param_groups:
        group.update(lr=0)
    alone = []
    for rank in (first, second):
        trainer.train_step(rank["batch"])
        alone.append([parameter.grad for parameter in trainer.network.parameters()])
        used = torch.cat([gradient.flatten() for gradient in alone[-1] if gradient is not None])
        assert 0 < used.norm() < 12  # nnU-Net clips at 12
        trainer.optimizer.zero_grad(set_to_none=True)
    for ours, theirs, one, other in zip(
        first["gradients"], second["gradients"], *alone, strict=True
    ):
        assert torch.equal(ours, theirs)
        if one is None:  # deepest supervision: DDP does with weight 1e-6 what else is left out
            torch.testing.assert_close(ours, torch.zeros_like(ours), atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(ours, (one + other) / 2, atol=1e-5, rtol=1e-4)


def test_a_rank_without_a_case_to_mine_does_not_wait_forever(boxes: Path, tmp_path: Path) -> None:
    first, second = run_ranks(tmp_path, "nnUNetTrainerTiny_MAPO_tiny", "train", fold=1)
    assert first["mined"] == ["case_0", "case_0"]
    assert second["mined"] == []
    assert first["weights"] == second["weights"]


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_both(
    boxes: Path, tmp_path: Path
) -> None:
    name = "nnUNetTrainerTiny_MAPO_tiny"
    first, second = run_ranks(tmp_path, name, "spoiled")
    assert first["is_finite"]
    assert first["weights"] == second["weights"]
    log = "".join(path.read_text() for path in fold_folder(tmp_path, name).glob("*.txt"))
    assert log.count("1 of 3 steps were not finite and skipped") == 2
