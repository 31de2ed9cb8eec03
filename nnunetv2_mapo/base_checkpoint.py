"""A checkpoint that a fine-tuning starts from: whether it fits, and how it is taken over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunetv2_mapo.continuing import read_checkpoint
from nnunetv2_mapo.dropout import is_head
from nnunetv2_mapo.weights import compare_shapes, hash_weights, match_names

VARIABLE = "nnUNet_mapo_checkpoint"
HOW_TO_FIT = (
    "Use the trainer, plans and configuration that it was trained with; nnUNetv2_move_plans_"
    "between_datasets brings the plans to another data set, which is then preprocessed with them."
)


class BaseError(ValueError):
    """A checkpoint that cannot be fine-tuned here; the message says why and what to do."""


@dataclass(frozen=True)
class Base:
    """Checkpoint that a fine-tuning starts from.

    Attributes:
        path: Its file.
        trainer: Name of the trainer class that wrote it.
        configuration: Name of the configuration.
        fold: Number, or `"all"`.
        num_epochs: Epochs that it was trained.
        plans: Content of its plans.
        dataset_json: Content of its `dataset.json`.
        weights: State dict of its network.
    """

    path: Path
    trainer: str
    configuration: str
    fold: int | str
    num_epochs: int
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    weights: Mapping[str, Tensor]

    def origin(self) -> dict[str, Any]:
        """JSON form of where the weights come from."""
        return {
            "path": str(self.path),
            "trainer": self.trainer,
            "dataset": self.plans["dataset_name"],
            "plans": self.plans["plans_name"],
            "configuration": self.configuration,
            "fold": self.fold,
            "num_epochs": self.num_epochs,
            "weights": hash_weights(self.weights),
        }


def read_base(path: Path) -> Base:
    """Read a checkpoint of nnU-Net.

    Raises:
        BaseError: It is missing, damaged, or something else.
    """
    advice = f"Let {VARIABLE} name another checkpoint, or train the model again."
    if not path.is_file():
        there = sorted(file.name for file in (path if path.is_dir() else path.parent).glob("*.pth"))
        message = f"{path} is no file. Checkpoints there: {', '.join(there) or 'none'}. {advice}"
        raise BaseError(message)
    try:
        content = read_checkpoint(path, advice)
        arguments = content["init_args"]
        return Base(
            path=path,
            trainer=content["trainer_name"],
            configuration=arguments["configuration"],
            fold=arguments["fold"],
            num_epochs=content["current_epoch"],
            plans=arguments["plans"],
            dataset_json=arguments["dataset_json"],
            weights=content["network_weights"],
        )
    except ValueError as error:
        raise BaseError(str(error)) from error
    except (KeyError, TypeError) as error:
        message = f"{path} does not say how it was trained ({error} is missing). {advice}"
        raise BaseError(message) from error


def compare_plans(theirs: PlansManager, mine: PlansManager, configurations: Sequence[str]) -> str:
    """Differences that make another network, or other images for it; empty if there are none.

    Args:
        theirs: Plans of the base.
        mine: Plans of this training.
        configurations: Name of the configuration there and here.
    """
    there, here = (
        _describe(plans, plans.get_configuration(name))
        for plans, name in zip((theirs, mine), configurations, strict=True)
    )
    return "; ".join(
        f"{key} is {there.get(key)} there, {here.get(key)} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    )


def _describe(plans: Any, configuration: Any) -> dict[str, Any]:
    schemes = configuration.normalization_schemes
    network = {"class": configuration.network_arch_class_name.rsplit(".", 1)[-1]}
    network |= configuration.network_arch_init_kwargs
    # only CT images are normalised by the intensities of the whole data set
    is_ct = any(scheme.startswith("CT") for scheme in schemes)
    return {
        "spacing": configuration.spacing,
        "normalization": schemes,
        "use_mask_for_norm": configuration.use_mask_for_norm,
        "transpose_forward": plans.transpose_forward,
        "intensities": plans.foreground_intensity_properties_per_channel if is_ct else None,
        **{f"the network's {key}": value for key, value in network.items()},
    }


def have_same_heads(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether the heads of two networks mean the same labels.

    Args:
        theirs: Content of a `dataset.json`.
        mine: The same of another data set.
    """
    labels, own = (
        {name: value for name, value in content["labels"].items() if name != "ignore"}
        for content in (theirs, mine)
    )
    has_regions = any(isinstance(value, (list, tuple)) for value in own.values())
    # a label's number is its head; regions have theirs in the order in which they are listed
    return labels == own and (not has_regions or list(labels) == list(own))


def find_leak(base: Base, dataset: str, fold: int | str, validation: Sequence[str]) -> str:
    """Say why validation cases of this training may have been training cases of the base.

    Args:
        base: The base.
        dataset: Name of this training's data set.
        fold: Its fold.
        validation: Its validation cases.

    Returns:
        Empty if they were not, or if this is another data set.
    """
    if base.plans["dataset_name"] != dataset or fold == "all":
        return ""
    if base.fold != fold:
        return (
            f"it is of fold {base.fold} of the same data set, so validation cases of fold {fold} "
            "were among its training cases"
        )
    validated = read_validated_cases(base.path)
    if validated is None:
        return ""
    if others := sorted(set(validation) - validated):
        return (
            f"{len(others)} validation cases of this fold, such as {others[0]}, were not when it "
            "was trained, by its validation/summary.json: the split has changed since"
        )
    return ""


def read_validated_cases(checkpoint: Path) -> set[str] | None:
    """Cases of the final validation beside a checkpoint; None if there was none."""
    try:
        summary = json.loads((checkpoint.parent / "validation/summary.json").read_bytes())
        return {
            Path(case["prediction_file"]).name.split(".")[0] for case in summary["metric_per_case"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def transfer(network: nn.Module, base: Base, num_outputs: int, *, with_heads: bool) -> None:
    """Load a base's weights into a network.

    Args:
        network: Not compiled, not wrapped.
        base: The base.
        num_outputs: Number of segmentation heads of the network.
        with_heads: Take the heads as well; else they stay as they are.

    Raises:
        BaseError: Names or shapes of the weights differ.
    """
    mine = network.state_dict()
    heads = {
        f"{name}.{parameter}"
        for name, module in network.named_modules(remove_duplicate=False)
        if is_head(module, num_outputs)
        for parameter in module.state_dict()
    }
    kept = set() if with_heads else heads
    theirs = match_names(base.weights, mine)
    differences = compare_shapes(
        {name: tensor for name, tensor in theirs.items() if name not in kept},
        {name: tensor for name, tensor in mine.items() if name not in kept},
    )
    if differences:
        message = (
            f"{base.path} holds the weights of another network: {'; '.join(differences)}. "
            f"{HOW_TO_FIT}"
        )
        raise BaseError(message)
    network.load_state_dict({name: mine[name] if name in kept else theirs[name] for name in mine})
