"""A trained model, or one that still trains, opened to be looked at; nothing is written."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn
from torch._dynamo import OptimizedModule

from nnunetv2_mapo.guards.checkpoint import read_checkpoint
from nnunetv2_mapo.method.cases import channels_of, labels_of
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dropout import StochasticDropout
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.mining import Miner, make_miner
from nnunetv2_mapo.method.sampling import make_sampler
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import find_checkpoint


class ModelError(CommandError):
    """A model that cannot be opened; the message says what is wrong and what there is instead."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and what nnU-Net knows of it.

    Attributes:
        network: With the checkpoint's weights, on the device, not compiled, in evaluation mode,
            without deep supervision. Other weights of the same training go into it with
            `load_state_dict`.
        labels: Meaning of its heads.
        trainer_name: Trainer class that made it.
        configuration: Name of the configuration.
        plans_manager: nnU-Net's.
        configuration_manager: nnU-Net's.
        label_manager: nnU-Net's.
        dataset_json: Content of the model's `dataset.json`.
        folder: `nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        fold: Number, or `"all"`.
        mapo: Settings of MAPO in the checkpoint, as of `MAPOConfig.to_dict`; None if the model was
            trained without MAPO.
    """

    network: nn.Module
    labels: Labels
    trainer_name: str
    configuration: str
    plans_manager: Any
    configuration_manager: Any
    label_manager: Any
    dataset_json: dict[str, Any]
    folder: Path
    fold: int | str
    mapo: dict[str, Any] | None

    @property
    def channel_names(self) -> list[str]:
        """Name of each channel of the image, in their order."""
        return channels_of(self.dataset_json)


def open_model(
    folder: Path, fold: int | str, checkpoint: str, device: torch.device
) -> TrainedModel:
    """Open a model as nnU-Net's prediction does.

    Args:
        folder: `nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        fold: Number, also as text, or `"all"`.
        checkpoint: File name of the checkpoint in the folder of the fold.
        device: Where the network is to lie.

    Raises:
        ModelError: The fold, the checkpoint or the model's `dataset.json` or `plans.json` is
            missing or damaged, or its trainer or the modules of its network are not installed here.
    """
    fold = int(fold) if str(fold).isdecimal() else fold
    content = read_model(find_checkpoint(folder, fold, checkpoint))
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=device)
    load_folds(predictor, folder, (fold,), checkpoint)
    network = predictor.network
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return TrainedModel(
        network=network.to(device).eval(),
        labels=labels_of(predictor.label_manager),
        trainer_name=content["trainer_name"],
        configuration=content["init_args"]["configuration"],
        plans_manager=predictor.plans_manager,
        configuration_manager=predictor.configuration_manager,
        label_manager=predictor.label_manager,
        dataset_json=predictor.dataset_json,
        folder=folder,
        fold=fold,
        mapo=content.get("mapo", {}).get("config"),
    )


@contextmanager
def open_miner(model: TrainedModel, config: MAPOConfig, device: torch.device) -> Iterator[Miner]:
    """Miner of a model of any trainer, with dropout where the model had it; it goes at the end.

    Raises:
        InputError: The network has no layer to drop out.
    """
    plan, num_channels = model.configuration_manager, len(model.channel_names)
    trained = MAPOConfig.from_dict(model.mapo or {})
    dropout = StochasticDropout(
        model.network,
        model.labels.num_heads,
        config.granularity,
        include=trained.dropout_include,
        exclude=trained.dropout_exclude,
        images=torch.zeros(1, num_channels, *plan.patch_size, device=device),
    )
    try:
        sampler = make_sampler(config, len(plan.patch_size), dropout, num_channels)
        yield make_miner(config, model.network, sampler, model.labels, plan, device)
    finally:
        dropout.remove()


def read_model(checkpoint: Path) -> dict[str, Any]:
    """Content of a checkpoint that nnU-Net's prediction can open.

    Raises:
        ModelError: It is damaged or something else.
    """
    advice = "Name another checkpoint with -chk."
    try:
        return read_checkpoint(checkpoint, advice, needed=("trainer_name", "init_args"))
    except ValueError as error:
        raise ModelError(str(error)) from error


def load_folds(
    predictor: nnUNetPredictor, folder: Path, folds: Sequence[int | str], checkpoint: str
) -> None:
    """Give nnU-Net's predictor a model whose checkpoints are there.

    Raises:
        ModelError: The model's `dataset.json` or `plans.json` is missing or damaged, or its trainer
            or the modules of its network are not installed here.
    """
    opened = folder / f"fold_{folds[0]}" / checkpoint
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old trainers, for nnU-Net to say
        try:
            predictor.initialize_from_trained_model_folder(str(folder), folds, checkpoint)
        except (RuntimeError, ImportError, AssertionError, OSError) as error:
            message = f"{opened} cannot be opened: {error}"
            raise ModelError(message) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = (
                f"{opened} cannot be opened ({type(error).__name__}: {error}): dataset.json or "
                f"plans.json in {folder} is damaged or not that of the training. Copy them anew "
                "from the data set's folder in nnUNet_preprocessed: dataset.json, and the plans' "
                "file as plans.json."
            )
            raise ModelError(message) from error
