"""Fine-tuning: a training that starts from a finished checkpoint, and which one that is.

The whole network is taken over, its segmentation heads included; nnU-Net's `-pretrained_weights`
leaves the heads out.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_mapo.guards.base_checkpoint import (
    HOW_TO_FIT,
    VARIABLE,
    Base,
    BaseError,
    compare_plans,
    find_leak,
    find_new_validation_cases,
    have_same_heads,
    read_base,
    transfer,
)
from nnunetv2_mapo.method.cases import channels_of
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.support.randomness import untouched

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
        if self.current_epoch:
            return None
        if not self.mapo.fine_tune:
            if named:
                name = type(self).__name__
                self.print_to_log_file(
                    f"MAPO: WARNING: {name} does not fine-tune: {VARIABLE} is not used"
                )
            return None
        if self.was_initialized:
            message = (
                f"{type(self).__name__} starts from a checkpoint of its own finding, so "
                f"-pretrained_weights has no place here. Leave it out; {VARIABLE} can name a file."
            )
            raise BaseError(message)
        path = Path(named).expanduser().absolute() if named else self._finished_base()
        base = read_base(path)
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
        dataset, fold = self.plans_manager.dataset_name, self.fold
        advice = (
            "The validation would be too good. Train the base for this fold with this split, or "
            "fine-tune fold 'all', which has no validation cases of its own."
        )
        if leak := find_leak(base, dataset, fold):
            message = f"{base.path} must not be fine-tuned here: {leak}. {advice}"
            raise BaseError(message)
        if base.plans["dataset_name"] != dataset or fold == "all":
            return
        others = find_new_validation_cases(base, map(str, self.do_split()[1]))
        if others is None:
            self.print_to_log_file(
                f"MAPO: NOTICE: {base.path} was not validated, so whether splits_final.json is "
                "still the one that it was trained with cannot be told"
            )
        elif others:
            changed = (
                f"{len(others)} validation cases of this fold, such as {others[0]}, were not when "
                f"{base.path} was trained, by its validation/summary.json: the split has changed "
                "since"
            )
            if not is_named:
                message = f"{changed}. {advice}"
                raise BaseError(message)
            # who names the file may know that the cases are new
            self.print_to_log_file(f"MAPO: WARNING: {changed}")

    def _start_from_base(self, base: Base) -> None:
        """Take the weights over.

        Raises:
            BaseError: The base is of another network, of other plans or of other images.
        """
        has_same_heads = have_same_heads(base.dataset_json, self.dataset_json)
        heads = set() if has_same_heads else self._find_heads()
        transfer(self._plain_network(), base, without=heads)
        differences = compare_plans(
            PlansManager(base.plans),
            self.plans_manager,
            (base.configuration, self.configuration_name),
        )
        there, here = channels_of(base.dataset_json), channels_of(self.dataset_json)
        if there != here and sorted(there) == sorted(here):
            differences += f"{differences and '; '}channels are {there} there, {here} here"
        if differences:
            message = (
                f"{base.path} was trained on other images: {differences}. The network would see "
                f"images unlike those that it knows. {HOW_TO_FIT}"
            )
            raise BaseError(message)
        self._fine_tuned = {**base.origin(), "heads": "kept" if has_same_heads else "new"}
        self.print_to_log_file(
            f"MAPO: fine-tuning {base.path} ({base.trainer}, {base.plans['dataset_name']}, fold "
            f"{base.fold}, {base.num_epochs} epochs)"
        )
        if there != here:
            self.print_to_log_file(
                f"MAPO: WARNING: its channels are {there}, those of this training {here}: each has "
                "to show the same"
            )
        if heads:
            self.print_to_log_file(
                f"MAPO: NOTICE: its labels are {base.dataset_json['labels']}, those of this "
                f"training {self.dataset_json['labels']}: the segmentation heads start anew, "
                f"{len(heads)} weights: {', '.join(sorted(heads))}"
            )

    def _find_heads(self) -> set[str]:
        """Names of the weights whose shape depends on the number of segmentation heads."""
        plan = self.configuration_manager
        described: tuple[Any, ...] = (self.plans_manager, plan)
        # the same question that nnU-Net asks of trainers that were written for an older version
        if "plans_manager" not in inspect.signature(self.build_network_architecture).parameters:
            described = (
                plan.network_arch_class_name,
                plan.network_arch_init_kwargs,
                plan.network_arch_init_kwargs_req_import,
            )
        with untouched(self.device):
            larger = self.build_network_architecture(
                *described,
                self.num_input_channels,
                self.labels.num_heads + 1,
                self.enable_deep_supervision,
            ).state_dict()
        return {
            name
            for name, tensor in self._plain_network().state_dict().items()
            if tensor.shape != larger[name].shape
        }


def find_base_trainer(trainer: type) -> type:
    """Trainer X of a class `X_MAPO`."""
    return next(
        each
        for each in trainer.__mro__
        if issubclass(each, nnUNetTrainer) and not issubclass(each, FineTunable)
    )
