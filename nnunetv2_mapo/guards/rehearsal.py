"""One step of the preference stage before the first epoch: would it work, days from now?"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import empty_cache
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_mapo.guards.steps import StepGuard
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.loss import MAPOLoss
from nnunetv2_mapo.method.store import WEIGHT_ONE, Round, stack_preferences
from nnunetv2_mapo.support.device import is_out_of_memory, untouched
from nnunetv2_mapo.support.errors import MAPOError

_REFERENCE = ", in which the reference network is there besides the trained one"
_ONE_OUTPUT = """derive the trainer from nnunetv2_mapo's SingleOutputTrainer, or add to it

    def initialize(self):
        self.enable_deep_supervision = False
        super().initialize()

    def set_deep_supervision_enabled(self, enabled):
        pass
"""


class TrainerError(MAPOError, RuntimeError):
    """A trainer that cannot learn preferences; the message says why and what to do."""


@dataclass(frozen=True)
class PlantedRound(Round):
    """A round that was never mined: chosen and rejected of each case differ in stripes.

    Attributes:
        dataset: nnU-Net's, of the training cases.
        period: Distance of the stripes along the last axis in voxels; a quarter is their width.
        has_margins: Whether the margins of a cached reference are with a pair.
    """

    dataset: Any
    period: int
    has_margins: bool

    def open_stack(self, identifier: str) -> NDArray[np.int16]:
        """Channels of a case, see `stack_preferences`."""
        segmentation = self.dataset.load_case(identifier)[1][:]
        chosen = np.zeros(segmentation.shape[1:], np.int16)
        chosen[..., np.arange(chosen.shape[-1]) % self.period < max(1, self.period // 4)] = 1
        none, weights = np.zeros_like(chosen), np.full_like(chosen, WEIGHT_ONE)
        margins = [none] if self.has_margins else []
        return stack_preferences(segmentation, chosen, none, weights, *margins)


def plant_round(dataset: Any, config: MAPOConfig, patch_size: Sequence[int]) -> PlantedRound:
    """Make a round for a dataset of nnU-Net's, of which every patch has a pair."""
    period = max(2, patch_size[-1] // 2)
    return PlantedRound(Path(), {}, dataset, period, config.reference == "cached")


@contextmanager
def rehearsing(trainer: Any) -> Iterator[None]:
    """Take a step inside a `with` block that changes nothing, or say what is wrong with it.

    The optimiser does not step; weights, attributes of the trainer and random states are
    afterwards as before. Batches come from one worker process, from none if the user wants none.

    Raises:
        TrainerError: The step fails.
    """
    attributes = vars(trainer).copy()
    weights = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    scaler = trainer.grad_scaler and trainer.grad_scaler.state_dict()
    num_workers = str(min(1, get_allowed_n_proc_DA()))
    try:
        with (
            untouched(trainer.device),
            patch.dict(os.environ, nnUNet_n_proc_DA=num_workers),
            patch.object(trainer.optimizer, "step", lambda *_, **__: None),
        ):
            trainer.guard = StepGuard()
            yield
    except MAPOError:
        raise
    except Exception as error:  # trainers, loaders and networks may raise anything
        raise TrainerError(_explain(trainer, error)) from error
    finally:
        vars(trainer).clear()
        vars(trainer).update(attributes)
        trainer.network.load_state_dict(weights)
        trainer.optimizer.zero_grad(set_to_none=True)
        if scaler:
            trainer.grad_scaler.load_state_dict(scaler)
        empty_cache(trainer.device)


def require_preferences(preferences: Tensor | None) -> Tensor:
    """Those of a batch of the preference stage, which must have some."""
    if preferences is None:
        message = (
            "The batches hold no preferences. They travel as channels of the segmentation: "
            "get_dataloaders has to take its cases from self.get_tr_and_val_datasets() and its "
            "transforms from self.get_training_transforms(…), and to hand on the last entry of "
            "the target."
        )
        raise TrainerError(message)
    return preferences


def check_step(trainer: str, objective: MAPOLoss) -> None:
    """Refuse a step that did not ask for its loss, so that no preference was learnt from."""
    if objective.num_calls == 0:
        message = (
            f"train_step of {trainer} does not call self.loss, to which the preference loss is "
            "added. Make its loss in _build_loss or initialize, and call self.loss(output, …)."
        )
        raise TrainerError(message)


def check_deep_supervision(trainer: Any) -> None:
    """Refuse a trainer that cannot switch the deep supervision of its network."""
    try:
        trainer.set_deep_supervision_enabled(False)
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    except AttributeError as error:
        message = (
            f"{type(trainer).__name__}.set_deep_supervision_enabled(False), which nnU-Net calls "
            "before each validation so that the network returns the full resolution alone, fails: "
            f"{error}. It has to do so for your network; if that has one output, {_ONE_OUTPUT}"
        )
        raise TrainerError(message) from error


def _explain(trainer: Any, error: Exception) -> str:
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return (
            f"{trainer.device} has too little memory for a step with preferences"
            f"{_REFERENCE if trainer.mapo.needs_network else ''}. Make batch_size smaller in a "
            "copy of the plans, and name that with -p."
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not Path(each.filename).is_relative_to(torch.__path__[0])]
    place = (own or frames)[-1]
    return (
        f"{type(trainer).__name__} would fail in the preference stage: a step with planted "
        f"preferences, taken now, ended in {type(error).__name__}: {error} ({place.filename}, "
        f"line {place.lineno}). {_advise(trainer)}"
    )


def _advise(trainer: Any) -> str:
    shape = (2, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    try:
        with torch.no_grad():
            output = trainer._plain_network()(torch.zeros(shape, device=trainer.device))
        has_several = isinstance(output, (list, tuple))
    except Exception:  # the error that is explained says it better
        has_several = trainer.enable_deep_supervision
    if has_several == trainer.enable_deep_supervision:
        return 'See "What MAPO expects of a trainer" in docs/how-to/your-own.md.'
    if has_several:
        return (
            "The network returns several outputs, but enable_deep_supervision is False: return the "
            "full resolution alone, or leave deep supervision on."
        )
    return f"The network has one output, but the trainer has deep supervision: {_ONE_OUTPUT}"
