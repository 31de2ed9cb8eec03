"""A checkpoint that a fine-tuning starts from: whether it fits, and how it is taken over."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunetv2_mapo.guards.checkpoint import read_checkpoint
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.support.files import compare_shapes, hash_weights, match_names

VARIABLE = "nnUNet_mapo_checkpoint"
HOW_TO_FIT = (
    "Use the trainer, plans and configuration that it was trained with; nnUNetv2_move_plans_"
    "between_datasets brings the plans to another data set, which is then preprocessed with them."
)
# nnU-Net's schemes that look at nothing but the image itself.
_NORMALIZED_BY_THEMSELVES = {
    "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
}  # fmt: skip


class BaseError(InputError):
    """A checkpoint that cannot be fine-tuned here; the message says why and what to do."""


@dataclass(frozen=True)
class Base:
    """Checkpoint that a fine-tuning starts from.

    Attributes:
        path: Its file.
        origin: JSON form of where its weights come from: path, trainer, dataset, plans,
            configuration, fold, num_epochs, their hash, and the origin of its own `base`.
        plans: Content of its plans.
        dataset_json: Content of its `dataset.json`.
        weights: State dict of its network.
    """

    path: Path
    origin: dict[str, Any]
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    weights: Mapping[str, Tensor]


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
        arguments, weights = content["init_args"], content["network_weights"]
        origin = {
            "path": str(path),
            "trainer": content["trainer_name"],
            "dataset": arguments["plans"]["dataset_name"],
            "plans": arguments["plans"]["plans_name"],
            "configuration": arguments["configuration"],
            "fold": arguments["fold"],
            "num_epochs": content["current_epoch"],
            "weights": hash_weights(weights),
            "base": content.get("mapo", {}).get("base"),
        }
        return Base(path, origin, arguments["plans"], arguments["dataset_json"], weights)
    except ValueError as error:
        raise BaseError(str(error)) from error
    except (KeyError, TypeError) as error:
        message = f"{path} does not say how it was trained ({error} is missing). {advice}"
        raise BaseError(message) from error


def compare_plans(
    theirs: PlansManager,
    mine: PlansManager,
    configurations: Sequence[str],
    *,
    without_network: bool = False,
) -> str:
    """Differences that make another network, or other images for it; empty if there are none."""
    there, here = (
        _describe_images(plans, plans.get_configuration(name))
        | ({} if without_network else _describe_network(plans.get_configuration(name)))
        for plans, name in zip((theirs, mine), configurations, strict=True)
    )
    return "; ".join(
        f"{key} is {there.get(key)} there, {here.get(key)} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    )


def _describe_network(configuration: Any) -> dict[str, Any]:
    network = {"class": configuration.network_arch_class_name.rsplit(".", 1)[-1]}
    network |= configuration.network_arch_init_kwargs
    return {f"the network's {key}": value for key, value in network.items()}


def _describe_images(plans: Any, configuration: Any) -> dict[str, Any]:
    schemes = configuration.normalization_schemes
    # others, such as CT's, may use the intensities of the whole data set
    needs_intensities = not set(schemes) <= _NORMALIZED_BY_THEMSELVES
    return {
        "spacing": configuration.spacing,
        "normalization": schemes,
        "use_mask_for_norm": configuration.use_mask_for_norm,
        "transpose_forward": plans.transpose_forward,
        "intensities": plans.foreground_intensity_properties_per_channel
        if needs_intensities
        else None,
    }


def have_same_heads(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether the heads of two networks mean the same labels, by their `dataset.json`."""
    labels, own = (
        {name: value for name, value in content["labels"].items() if name != "ignore"}
        for content in (theirs, mine)
    )
    has_regions = any(isinstance(value, (list, tuple)) for value in own.values())
    # a label's number is its head; regions have theirs in the order in which they are listed
    return labels == own and (not has_regions or list(labels) == list(own))


def find_leak(base: Base, dataset: str, fold: int | str) -> str:
    """Say why validation cases of a training may have been training cases of its base.

    What the base was fine-tuned from itself counts as well.

    Returns:
        Empty if every model of that data set in its history was trained on the same fold.
    """
    link: dict[str, Any] | None = base.origin
    while link is not None:
        if link["dataset"] == dataset and link["fold"] != fold != "all":
            return (
                f"{link['path']} is of fold {link['fold']} of the same data set, so validation "
                f"cases of fold {fold} were among its training cases"
            )
        link = link.get("base")
    return ""


def find_new_validation_cases(base: Base, validation: Iterable[str]) -> list[str] | None:
    """Validation cases that were not so when the base was trained, by its own validation.

    Returns:
        Their identifiers; None if the base was not validated, so that it cannot be known.
    """
    validated = read_validated(base.path.parent, base.dataset_json["file_ending"])
    return None if validated is None else sorted(set(validation) - validated)


def read_validated(fold: Path, ending: str) -> set[str] | None:
    """Cases that a fold was validated on, by its `validation/summary.json`; None without one.

    Args:
        fold: nnU-Net's folder of the fold.
        ending: Of the files of segmentations.
    """
    try:
        summary = json.loads((fold / "validation/summary.json").read_bytes())
        files = [case["prediction_file"] for case in summary["metric_per_case"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # written on any system: this splits at / and at \
    return {PureWindowsPath(file).name.removesuffix(ending) for file in files}


def transfer(network: nn.Module, base: Base, without: Collection[str] = ()) -> None:
    """Load a base's weights into a network.

    Args:
        network: Not compiled, not wrapped.
        base: The base.
        without: Names of weights that stay as they are.

    Raises:
        BaseError: Names or shapes of the others differ.
    """
    mine = network.state_dict()
    theirs = match_names(base.weights, mine)
    differences = compare_shapes(
        {name: tensor for name, tensor in theirs.items() if name not in without},
        {name: tensor for name, tensor in mine.items() if name not in without},
    )
    if differences:
        message = (
            f"{base.path} holds the weights of another network: {'; '.join(differences)}. "
            f"{HOW_TO_FIT}"
        )
        raise BaseError(message)
    network.load_state_dict(
        {name: mine[name] if name in without else theirs[name] for name in mine}
    )
