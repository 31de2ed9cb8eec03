"""What arrives in a W&B run, read back from its file: wandb itself, offline."""

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from test_training import stop_in_epoch
from wandb.proto.wandb_internal_pb2 import Record

from nnunetv2_mapo.method.loss import STEP_KEYS
from nnunetv2_mapo.method.progress import MINING_KEYS

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
MakeTrainer = Callable[..., Any]
BLOCK = 32768  # bytes of a block in LevelDB's log format, which W&B's run files have


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch nnU-Net's W&B logger on, without network and with every file below `tmp_path`."""
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")


def read_records(path: Path) -> Iterator[Record]:
    """Records of a run file: LevelDB's log format, a header of seven bytes before it."""
    content = path.read_bytes()
    place, record = 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # too little is left in the block for a fragment's header
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last fragment
            yield Record.FromString(record)
            record = b""


def read_run(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """Configuration of a run, and its logged values by step."""
    config, history = {}, {}
    for record in read_records(path):
        for item in record.config.update:
            config[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            values = {i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
            history[values["_step"]] = values
    return config, history


def finish(trainer: Any) -> None:
    """End W&B, as the end of the process does: only then its file is sure to be complete."""
    [logger] = trainer.logger.loggers
    logger.run.finish()
    wandb.teardown()


def find_runs(trainer: Any) -> list[Path]:
    """Run files of a training, the oldest first: their folders begin with the time."""
    return sorted(Path(trainer.output_folder).glob("wandb/offline-run-*/run-*.wandb"))


def test_wandb_gets_the_settings_and_every_value_of_every_epoch(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(configuration="2d")
    trainer.run_training()
    finish(trainer)
    [path] = find_runs(trainer)
    config, history = read_run(path)
    assert config["mapo"] == trainer.mapo.to_dict()
    assert config["hparas"]["num_epochs"] == 6  # nnU-Net's own
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert sorted(history) == [0, 1, 2, 3, 4, 5]
    for key in (*STEP_KEYS, *MINING_KEYS, "mean_fg_dice"):
        arrived = [history[epoch][key] for epoch in range(6)]
        assert arrived == pytest.approx(logged[key], nan_ok=True), key
    warmup = trainer.schedule.stages[0].end_epoch
    rewards = [history[epoch]["rewards/margins"] for epoch in range(6)]
    assert [math.isnan(reward) for reward in rewards] == [epoch < warmup for epoch in range(6)]


def test_a_continued_training_goes_on_in_the_same_wandb_run(make_trainer: MakeTrainer) -> None:
    first = make_trainer(configuration="2d")
    stop_in_epoch(first, epoch=4)
    finish(first)
    second = make_trainer(configuration="2d", continue_training=True)
    begin = second.current_epoch
    second.run_training()
    finish(second)
    paths = find_runs(second)
    assert len(paths) == 2  # offline each process writes its own file; `wandb sync` joins them
    assert paths[0].name == paths[1].name  # run-ID.wandb
    (config, before), (config_again, after) = map(read_run, paths)
    assert config["mapo"] == config_again["mapo"] == second.mapo.to_dict()
    assert (min(before), min(after), max(after)) == (0, begin, 5)
    assert all("loss/dpo" in values for values in after.values())
