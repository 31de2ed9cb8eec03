"""Small preprocessed data sets, made by nnU-Net itself, for all integration tests."""

import multiprocessing.dummy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnunetv2
import numpy as np
import pytest
import torch
from boxes import DATASET
from prepare import draw_boxes, prepare, write_dataset

from nnunetv2_mapo import trainer as mapo
from nnunetv2_mapo.method.progress import plot_progress

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def _threads_for_nnunets_workers() -> Iterator[None]:
    """Let nnU-Net's pools be threads: each of its processes would import everything anew."""
    get_context = multiprocessing.get_context

    def make_process(*, daemon: bool, **arguments: Any) -> Any:
        process = multiprocessing.dummy.Process(**arguments)
        process.daemon = daemon
        return process

    threads = SimpleNamespace(**vars(multiprocessing.dummy) | {"Process": make_process})

    def get(method: str | None = None) -> Any:
        return threads if method == "spawn" else get_context(method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", get)
        yield


@pytest.fixture(scope="session")
def nnunet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with nnU-Net's three folders, which the environment names."""
    root = tmp_path_factory.mktemp("nnunet")
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ.update(nnUNet_def_n_proc="1", nnUNet_compile="0")
    trainer_folders = [HERE / "trainers"]
    if not (Path(nnunetv2.__path__[0]) / "training/nnUNetTrainer/variants/mapo").is_dir():
        trainer_folders.append(HERE.parents[1] / "trainer_configs")
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(map(str, trainer_folders))
    return root


@pytest.fixture(scope="session")
def boxes(nnunet_folder: Path) -> Path:
    """Folder with nnU-Net's three folders; the data set in it is preprocessed."""
    rng = np.random.default_rng(0)
    labels = {"background": 0, "large": 1, "small": 2}
    write_dataset(nnunet_folder, DATASET, labels, [draw_boxes(rng) for _ in range(6)])
    patch_sizes = {"2d": (16, 16), "3d_fullres": (8, 16, 16)}
    prepare(nnunet_folder, DATASET, patch_sizes, num_training=4)
    return nnunet_folder


def plot_last_progress(folder: Path, logged: Any, stages: Any) -> None:
    """Draw our picture in the last epoch only."""
    if len(logged["mean_fg_dice"]) == stages[-1].end_epoch:
        plot_progress(folder, logged, stages)


@pytest.fixture
def make_trainer(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Makes a trainer as `nnUNetv2_train` does; results go to a folder of this test."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    # Pictures take longer to draw than all the epochs of a test together.
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(mapo, "plot_progress", plot_last_progress)

    def make(
        name: str = "nnUNetTrainerTiny_MAPO_tiny",
        configuration: str = "3d_fullres",
        *,
        dataset: str = DATASET,
        plans: str = "nnUNetPlans",
        fold: int | str = 0,
        continue_training: bool = False,
    ) -> Any:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  # nnU-Net draws from it
        trainer = get_trainer_from_args(
            dataset,
            configuration,
            fold,
            name,
            plans,
            continue_training=continue_training,
            device=torch.device("cpu"),
        )
        maybe_load_checkpoint(trainer, continue_training, validation_only=False)
        return trainer

    return make
