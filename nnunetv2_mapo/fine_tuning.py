"""Fine-tuning: a training that starts from a finished checkpoint, and which one that is.

The whole network is taken over, its segmentation heads included; nnU-Net's `-pretrained_weights`
leaves the heads out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_mapo.base_checkpoint import (
    HOW_TO_FIT,
    VARIABLE,
    Base,
    BaseError,
    compare_plans,
    find_leak,
    have_same_heads,
    read_base,
    transfer,
)
from nnunetv2_mapo.config import MAPOConfig

FINAL = "checkpoint_final.pth"
_Base: Any = object  # to mypy, everything that a trainer inherits is Any


class FineTunable(_Base):  # type: ignore[misc]  # nnU-Net ships no types
    """Part of `MAPOTrainer` that starts from a finished checkpoint if the settings ask for it.

    Attributes:
        mapo: Settings.
    """

    mapo = MAPOConfig()

    _fine_tuned: dict[str, Any] | None = None

    def _find_base(self) -> Base | None:
        """Checkpoint to start from; None for a training that is continued, or from scratch.

        Raises:
            BaseError: There is none, or it must not be used.
        """
        named = os.environ.get(VARIABLE)
        if not self.mapo.fine_tune:
            if named:
                self.print_to_log_file(
                    f"MAPO: WARNING: {VARIABLE} is set, but {type(self).__name__} does not "
                    "fine-tune: it starts from random weights"
                )
            return None
        if self.current_epoch:
            return None
        if self.was_initialized:
            message = (
                f"{type(self).__name__} starts from a checkpoint of its own finding, so "
                f"-pretrained_weights has no place here. Leave it out; {VARIABLE} can name a file."
            )
            raise BaseError(message)
        base = read_base(Path(named).expanduser() if named else self._finished_base())
        self._refuse_leak(base, is_named=bool(named))
        return base

    def _finished_base(self) -> Path:
        """Finished checkpoint of the base trainer for the same data set, plans and fold."""
        trainer = find_base_trainer(type(self)).__name__
        plans, configuration = self.plans_manager.plans_name, self.configuration_name
        model = Path(self.output_folder_base).parent / f"{trainer}__{plans}__{configuration}"
        path = model / f"fold_{self.fold}" / FINAL
        if not path.is_file():
            there = sorted(file.parent.name for file in model.glob(f"fold_*/{FINAL}"))
            message = (
                f"{type(self).__name__} fine-tunes {trainer}, but {path} is missing. Finished "
                f"folds there: {', '.join(there) or 'none'}; another fold's model has seen the "
                f"validation cases of this one. Train it first: nnUNetv2_train "
                f"{self.plans_manager.dataset_name} {configuration} {self.fold} -tr {trainer} "
                f"-p {plans}, or let {VARIABLE} name a checkpoint."
            )
            raise BaseError(message)
        return path

    def _refuse_leak(self, base: Base, *, is_named: bool) -> None:
        _, validation = self.do_split()
        dataset = self.plans_manager.dataset_name
        leak = find_leak(base, dataset, self.fold, list(map(str, validation)))
        if leak and is_named and base.fold == self.fold:  # the user may know better
            self.print_to_log_file(f"MAPO: WARNING: {base.path}: {leak}")
        elif leak:
            message = (
                f"{base.path} must not be fine-tuned here: {leak}. The validation would be too "
                f"good. Train the base for fold {self.fold} with this split, or fine-tune fold "
                "'all', which has no validation cases of its own."
            )
            raise BaseError(message)

    def _start_from_base(self, base: Base) -> None:
        """Take the weights over.

        Raises:
            BaseError: The base is of another network or of other plans.
        """
        with_heads = have_same_heads(base.dataset_json, self.dataset_json)
        transfer(self._plain_network(), base, self.labels.num_heads, with_heads=with_heads)
        differences = compare_plans(
            PlansManager(base.plans),
            self.plans_manager,
            (base.configuration, self.configuration_name),
        )
        if differences:
            message = (
                f"{base.path} was trained with other plans: {differences}. The network would see "
                f"images unlike those that it knows. {HOW_TO_FIT}"
            )
            raise BaseError(message)
        origin = base.origin()
        self._fine_tuned = {**origin, "heads": "kept" if with_heads else "new"}
        described = ", ".join(f"{key} {value}" for key, value in origin.items() if key != "path")
        self.print_to_log_file(f"MAPO: fine-tuning {base.path} ({described})")
        if not with_heads:
            self.print_to_log_file(
                f"MAPO: NOTICE: its labels are {base.dataset_json['labels']}, those of this "
                f"training {self.dataset_json['labels']}: the segmentation heads start anew"
            )


def find_base_trainer(trainer: type) -> type:
    """Trainer X of a class `X_MAPO`."""
    return next(
        each
        for each in trainer.__mro__
        if issubclass(each, nnUNetTrainer) and not issubclass(each, FineTunable)
    )
