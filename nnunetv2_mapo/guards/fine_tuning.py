"""Fine-tuning: which finished checkpoint a training starts from, and how it is taken over.

The whole network is taken over, its segmentation heads included; nnU-Net's `-pretrained_weights`
leaves the heads out.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

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
from nnunetv2_mapo.guards.checkpoint import FINAL
from nnunetv2_mapo.guards.choices import named_folder
from nnunetv2_mapo.method.cases import channels_of
from nnunetv2_mapo.method.choices import read_model
from nnunetv2_mapo.support.device import untouched


def find_base(trainer: Any) -> Base | None:
    """Checkpoint that a `MAPOTrainer` starts from; None if it is continued, or from scratch.

    Raises:
        BaseError: There is none, it is damaged, or -pretrained_weights names another one.
    """
    name, named = type(trainer).__name__, os.environ.get(VARIABLE)
    if trainer.current_epoch:
        return None
    if not trainer.mapo.fine_tune:
        if named:
            trainer.print_to_log_file(
                f"MAPO: WARNING: {name} does not fine-tune: {VARIABLE} is not used"
            )
        return None
    if trainer.was_initialized:
        message = (
            f"{name} starts from a checkpoint of its own finding, so -pretrained_weights has no "
            f"place here. Leave it out; {VARIABLE} can name a file."
        )
        raise BaseError(message)
    path = _find_path(trainer, named)
    if path.parent.resolve() == Path(trainer.output_folder).resolve():
        message = (
            f"{path} is what this training would overwrite. Let nnUNet_results name another folder "
            "for the new model."
        )
        raise BaseError(message)
    return read_base(path)


def _find_path(trainer: Any, named: str | None) -> Path:
    if named:
        return Path(named).expanduser().absolute()
    if trainer.mapo.unlabelled != "off" and (choices := named_folder()):
        return Path(read_model(choices)["checkpoint"])  # of the model that was asked about
    return _find_finished(trainer)


def _find_finished(trainer: Any) -> Path:
    """Finished checkpoint of the base trainer for the same data set, plans and fold."""
    base_trainer = find_base_trainer(type(trainer)).__name__
    plans, configuration = trainer.plans_manager.plans_name, trainer.configuration_name
    dataset = trainer.plans_manager.dataset_name
    model = Path(nnUNet_results.require(), dataset, f"{base_trainer}__{plans}__{configuration}")
    path = model / f"fold_{trainer.fold}" / FINAL
    if not path.is_file():
        there = sorted(file.parent.name for file in model.glob(f"fold_*/{FINAL}"))
        message = (
            f"{type(trainer).__name__} fine-tunes {base_trainer}, but {path} is missing. Finished "
            f"folds there: {', '.join(there) or 'none'}; another fold's model has seen the "
            f"validation cases of this one. Train it first: nnUNetv2_train "
            f"{dataset} {configuration} {trainer.fold} "
            f"-tr {base_trainer} -p {plans}, or let {VARIABLE} name a checkpoint."
        )
        raise BaseError(message)
    return path


def _refuse_leak(trainer: Any, base: Base) -> None:
    dataset, fold = trainer.plans_manager.dataset_name, trainer.fold
    advice = (
        "The validation would be too good. Train the base for this fold with this split, or "
        "fine-tune fold 'all', which has no validation cases of its own."
    )
    if leak := find_leak(base, dataset, fold):
        message = f"{base.path} must not be fine-tuned here: {leak}. {advice}"
        raise BaseError(message)
    if base.plans["dataset_name"] != dataset or fold == "all":
        return
    others = find_new_validation_cases(base, map(str, trainer.do_split()[1]))
    if others is None:
        trainer.print_to_log_file(
            f"MAPO: NOTICE: {base.path} was not validated, so whether splits_final.json is "
            "still the one that it was trained with cannot be told"
        )
    elif others:
        changed = (
            f"{len(others)} validation cases of this fold, such as {others[0]}, were not when "
            f"{base.path} was trained, by its validation/summary.json: the split has changed since"
        )
        if not os.environ.get(VARIABLE):
            message = f"{changed}. {advice}"
            raise BaseError(message)
        # who names the file may know that the cases are new
        trainer.print_to_log_file(f"MAPO: WARNING: {changed}")


def start_from_base(trainer: Any, network: nn.Module, base: Base) -> dict[str, Any]:
    """Take the weights over into the network of an initialised trainer, not compiled, not wrapped.

    Returns:
        JSON form of where the weights come from.

    Raises:
        BaseError: The base is of another network, of other plans or of other images, or has seen
            validation cases.
    """
    _refuse_leak(trainer, base)
    log = trainer.print_to_log_file
    has_same_heads = have_same_heads(base.dataset_json, trainer.dataset_json)
    heads = set() if has_same_heads else find_label_weights(trainer, network)
    transfer(network, base, without=heads)
    differences = compare_plans(
        PlansManager(base.plans),
        trainer.plans_manager,
        (base.origin["configuration"], trainer.configuration_name),
    )
    there, here = channels_of(base.dataset_json), channels_of(trainer.dataset_json)
    if there != here and sorted(there) == sorted(here):
        differences += f"{differences and '; '}channels are {there} there, {here} here"
    if differences:
        message = (
            f"{base.path} was trained on other images: {differences}. The network would see "
            f"images unlike those that it knows. {HOW_TO_FIT}"
        )
        raise BaseError(message)
    words = "MAPO: fine-tuning {path} ({trainer}, {dataset}, fold {fold}, {num_epochs} epochs)"
    log(words.format(**base.origin))
    if there != here:
        log(
            f"MAPO: WARNING: its channels are {there}, those of this training {here}: each has "
            "to show the same"
        )
    if heads:
        log(
            f"MAPO: NOTICE: its labels are {base.dataset_json['labels']}, those of this "
            f"training {trainer.dataset_json['labels']}: the segmentation heads start anew, "
            f"{len(heads)} weights: {', '.join(sorted(heads))}"
        )
    return {**base.origin, "heads": "kept" if has_same_heads else "new"}


def find_label_weights(trainer: Any, network: nn.Module) -> set[str]:
    """Names of the weights whose shape depends on the number of segmentation heads."""
    plan = trainer.configuration_manager
    described: tuple[Any, ...] = (trainer.plans_manager, plan)
    # the same question that nnU-Net asks of trainers that were written for an older version
    if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
        described = (plan.network_arch_class_name, plan.network_arch_init_kwargs,
                     plan.network_arch_init_kwargs_req_import)  # fmt: skip
    with untouched(trainer.device):
        larger = trainer.build_network_architecture(
            *described,
            trainer.num_input_channels,
            trainer.labels.num_heads + 1,
            trainer.enable_deep_supervision,
        ).state_dict()
    return {
        name for name, tensor in network.state_dict().items() if tensor.shape != larger[name].shape
    }


def find_base_trainer(trainer: type) -> type:
    """Trainer X of a class `X_MAPO`: the first one that has no settings of MAPO."""
    return next(
        each
        for each in trainer.__mro__
        if issubclass(each, nnUNetTrainer) and not hasattr(each, "mapo")
    )
