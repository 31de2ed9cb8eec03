"""What a training cost and logged, read from the folder of its fold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_mapo.guards.checkpoint import BEST, LATEST, read_checkpoint
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.schedule import Stage

FINAL = "checkpoint_final.pth"
# What nnU-Net's debug.json calls it, and what it is.
_ENVIRONMENT = {"torch_version": "torch", "cudnn_version": "cuDNN", "gpu_name": "GPU"}
_EPOCH = re.compile(r": Epoch (\d+)\b")
_MINED = re.compile(r"MAPO: round \d+: .* cases mined in ([\d.]+) s")


class HistoryError(RuntimeError):
    """A fold whose training cannot be read; the message says what is missing."""


@dataclass(frozen=True)
class History:
    """What a training, finished or not, cost and logged.

    Attributes:
        checkpoint: File that this was read from.
        num_epochs: Length of the training in epochs.
        num_epochs_done: Epochs that are in the checkpoint.
        training_s: Sum of the epochs' durations in seconds; breaks, mining and epochs
            that were interrupted do not count.
        mining_s: Sum of the durations of mining in seconds, by the logs.
        num_starts: How often it was started or continued; 0 without a log.
        num_dimensions: Of the configuration, 2 or 3.
        logged: Values that nnU-Net and MAPO logged, by key, one for each epoch.
        stages: Warm-up and rounds; a training without MAPO is one stage.
        reference_hash: Hash of the reference's weights; empty before the first round.
        environment: Versions and hardware of the training, as far as nnU-Net wrote them down.
        config: Settings of MAPO, as of `MAPOConfig.to_dict`; None without MAPO.
    """

    checkpoint: Path
    num_epochs: int
    num_epochs_done: int
    training_s: float
    mining_s: float
    num_starts: int
    num_dimensions: int
    logged: Mapping[str, Sequence[Any]]
    stages: list[Stage]
    reference_hash: str
    environment: dict[str, str]
    config: dict[str, Any] | None

    @property
    def has_preferences(self) -> bool:
        """Whether it has come to the preference stage."""
        return len(self.stages) > 1 and self.num_epochs_done > self.stages[0].end_epoch


def read_history(fold: Path) -> History:
    """Read the history of a fold's latest training from its checkpoint and its logs.

    Args:
        fold: nnU-Net's folder of the fold.

    Raises:
        HistoryError: There is no checkpoint, or it is damaged.
    """
    path = latest_checkpoint(fold)
    try:
        checkpoint = read_checkpoint(path, needed=("logging", "init_args"))
    except ValueError as error:
        raise HistoryError(str(error)) from error
    logged, origin = checkpoint["logging"], checkpoint["init_args"]
    num_epochs_done = len(logged["epoch_end_timestamps"])
    debug = _read_debug(fold)
    num_epochs = max(int(debug.get("num_epochs", 0)), num_epochs_done)
    logs = _read_logs(fold)
    mapo = checkpoint.get("mapo", {})
    config = mapo.get("config")
    plans = PlansManager(origin["plans"]).get_configuration(origin["configuration"])
    num_dimensions = len(plans.patch_size)
    starts, ends = logged["epoch_start_timestamps"], logged["epoch_end_timestamps"]
    return History(
        checkpoint=path,
        num_epochs=num_epochs,
        num_epochs_done=num_epochs_done,
        training_s=sum(end - start for start, end in zip(starts, ends, strict=False)),
        mining_s=sum(float(seconds) for log in logs for seconds in _MINED.findall(log)),
        num_starts=len(logs),
        num_dimensions=num_dimensions,
        logged=logged,
        stages=find_stages(config, num_epochs, num_dimensions),
        reference_hash=mapo.get("begun", {}).get("reference", ""),
        environment={
            title: debug[key]
            for key, title in _ENVIRONMENT.items()
            if debug.get(key, "None") != "None"
        },
        config=config,
    )


def latest_checkpoint(fold: Path) -> Path:
    """Checkpoint of a fold that tells most of its latest training.

    nnU-Net deletes the latest checkpoint when a training ends: where there is one beside a final
    one, that is of an earlier training.

    Raises:
        HistoryError: There is none.
    """
    for name in (LATEST, FINAL, BEST):
        if (fold / name).is_file():
            return fold / name
    message = f"{fold} has no checkpoint ({LATEST}, {FINAL}, {BEST}): nothing was trained there."
    raise HistoryError(message)


def find_stages(config: dict[str, Any] | None, num_epochs: int, num_dimensions: int) -> list[Stage]:
    """Stages of a training by its settings."""
    if config is None:
        return [Stage(0, 0, num_epochs)]
    return MAPOConfig.from_dict(config).schedule(num_epochs, num_dimensions).stages


def _read_debug(fold: Path) -> dict[str, str]:
    """nnU-Net's `debug.json`: what the trainer was like when it started; empty if missing."""
    try:
        content: dict[str, str] = json.loads((fold / "debug.json").read_text())
    except (OSError, ValueError):
        return {}
    return content


def _read_logs(fold: Path) -> list[str]:
    """Logs in which an epoch began, since the training last started anew; one of each start."""
    logs: list[str] = []
    for path in sorted(fold.glob("training_log_*.txt"), key=_time_of):
        log = path.read_text(errors="replace")
        if epoch := _EPOCH.search(log):  # none in the log of a validation
            logs = [log] if int(epoch[1]) == 0 else [*logs, log]
    return logs


def _time_of(log: Path) -> list[int]:
    """Year, month, day … in the name of a log, which nnU-Net does not pad with zeros."""
    return [int(number) for number in re.findall(r"\d+", log.name)]


def format_duration(seconds: float) -> str:
    """Duration in the unit that suits it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
