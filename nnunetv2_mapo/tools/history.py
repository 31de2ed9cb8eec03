"""What a training cost and logged, read from the folder of its fold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_mapo.guards.checkpoint import BEST, LATEST, read_checkpoint
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.progress import MinedPairs, are_none, find_pairs
from nnunetv2_mapo.method.schedule import Stage
from nnunetv2_mapo.support.errors import CommandError

FINAL = "checkpoint_final.pth"
_EPOCH = re.compile(r": Epoch (\d+)\b")
_MINED = re.compile(r"MAPO: round \d+: .* cases mined in ([\d.]+) s")


class HistoryError(CommandError):
    """A fold whose training cannot be read; the message says what is missing."""


@dataclass(frozen=True)
class History:
    """What a training, finished or not, cost and logged.

    Attributes:
        checkpoint: File that this was read from, `MODEL_FOLDER/fold_X/checkpoint_….pth`.
        num_epochs: Length of the training in epochs.
        num_epochs_done: Epochs that are in the checkpoint.
        training_s: Sum of the epochs' durations in seconds; breaks, mining and epochs
            that were interrupted do not count.
        mining_s: Sum of the durations of mining in seconds, which only the logs say.
        num_starts: How often it was started or continued; 0 without a log.
        num_dimensions: Of the configuration, 2 or 3.
        logged: Values that nnU-Net and MAPO logged, by key, one for each epoch.
        config: Settings of MAPO, as of `MAPOConfig.to_dict`; None without MAPO.
        begun: Epoch in which each round that has begun did so.
        choices: Experts' choices that were learnt from, as of `guards.choices`; None without.
        base: Hash of the weights that a fine-tuning started from; None without.
    """

    checkpoint: Path
    num_epochs: int
    num_epochs_done: int
    training_s: float
    mining_s: float
    num_starts: int
    num_dimensions: int
    logged: Mapping[str, Sequence[Any]]
    config: dict[str, Any] | None
    begun: tuple[int, ...] = ()
    choices: dict[str, Any] | None = None
    base: str | None = None

    @property
    def fold(self) -> str:
        """Number of the fold, or `"all"`."""
        return self.checkpoint.parent.name.removeprefix("fold_")

    @property
    def stages(self) -> list[Stage]:
        """Warm-up and rounds by the settings; a training without MAPO is one stage."""
        if self.config is None:
            return [Stage(0, 0, self.num_epochs)]
        config = MAPOConfig.from_dict(self.config)
        return config.schedule(self.num_epochs, self.num_dimensions, self.begun).stages

    @property
    def has_preferences(self) -> bool:
        """Whether it has come to the preference stage."""
        return len(self.stages) > 1 and self.num_epochs_done > self.stages[0].end_epoch

    @property
    def pairs(self) -> list[MinedPairs]:
        """What was mined in each round that has an epoch in the checkpoint; empty with choices."""
        return [] if self.choices else find_pairs(self.logged, self.stages)


def read_history(fold: Path) -> History:
    """Read the history of a fold's latest training from its checkpoint and its logs.

    Args:
        fold: nnU-Net's folder of the fold.

    Raises:
        HistoryError: There is no checkpoint, or it is damaged.
    """
    path = _latest_checkpoint(fold)
    try:
        checkpoint = read_checkpoint(path, needed=("logging", "init_args"))
    except ValueError as error:
        raise HistoryError(str(error)) from error
    logged, origin = checkpoint["logging"], checkpoint["init_args"]
    starts, ends = logged["epoch_start_timestamps"], logged["epoch_end_timestamps"]
    plans = PlansManager(origin["plans"]).get_configuration(origin["configuration"])
    logs, mapo = _read_logs(fold), checkpoint.get("mapo", {})
    history = History(
        checkpoint=path,
        num_epochs=max(_planned_epochs(fold), len(ends)),
        num_epochs_done=len(ends),
        training_s=sum(end - start for start, end in zip(starts, ends, strict=False)),
        mining_s=sum(float(seconds) for log in logs for seconds in _MINED.findall(log)),
        num_starts=len(logs),
        num_dimensions=len(plans.patch_size),
        logged=logged,
        config=mapo.get("config"),
        begun=tuple(mapo.get("begun", {}).get("first_epochs", ())),
        choices=mapo.get("choices"),
        base=(mapo.get("base") or {}).get("weights"),
    )
    try:
        _ = history.stages
    except ValueError as error:  # only its best checkpoint is there, and that does not say how long
        message = f"{path} does not say how long the training is: {error}"
        raise HistoryError(message) from error
    return history


def _latest_checkpoint(fold: Path) -> Path:
    """Checkpoint of a fold that tells most of its latest training.

    nnU-Net deletes the latest checkpoint when a training ends: where there is one beside a final
    one, that is of an earlier training.
    """
    for name in (LATEST, FINAL, BEST):
        if (fold / name).is_file():
            return fold / name
    message = f"{fold} has no checkpoint ({LATEST}, {FINAL}, {BEST}): nothing was trained there."
    raise HistoryError(message)


def _planned_epochs(fold: Path) -> int:
    """Length of the training by nnU-Net's `debug.json`; 0 if that is missing or damaged."""
    try:
        return int(json.loads((fold / "debug.json").read_text())["num_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _read_logs(fold: Path) -> list[str]:
    """Logs in which an epoch began, since the training last started anew; one of each start."""
    logs: list[str] = []
    # nnU-Net does not pad the date and time in a log's name with zeros
    for path in sorted(
        fold.glob("training_log_*.txt"), key=lambda log: [*map(int, re.findall(r"\d+", log.name))]
    ):
        log = path.read_text(errors="replace")
        if epoch := _EPOCH.search(log):  # none in the log of a validation
            logs = [log] if int(epoch[1]) == 0 else [*logs, log]
    return logs


def has_no_pairs(histories: Sequence[History]) -> bool:
    """Whether a training that wants pairs found none in any of its rounds: it is the control."""
    return are_none([mined for history in histories for mined in history.pairs])


def describe_pairs(histories: Sequence[History | None]) -> str:
    """Pairs of each round over all folds, in a few words for a table."""
    known = [history for history in histories if history is not None]
    if not known or len(known) < len(histories):
        return "unknown"
    if choices := [history.choices for history in known if history.choices]:
        return f"learnt from {sum(each['num_answers'] for each in choices)} answers"
    if has_no_pairs(known):
        return "no pairs: a control"
    rounds = zip_longest(*(history.pairs for history in known), fillvalue=MinedPairs(0, 0))
    sums = [MinedPairs(*map(sum, zip(*folds, strict=True))) for folds in rounds]
    if not sums:
        return "none yet" if len(known[0].stages) > 1 else "none wanted"
    samples = {f"{mined.num_samples:.0f}" for mined in sums} - {"nan"}
    of = f" of {max(samples, key=int)}" if samples else ""
    return ", ".join(f"{mined.num_pairs:.0f}" for mined in sums) + of
