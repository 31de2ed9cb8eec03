"""MAPO for any nnU-Net trainer: says when each stage of the method happens, not how.

`MAPOTrainer` stands in front of a trainer class and calls `super()` everywhere, so that the
trainer's own network, loss, optimiser, augmentation and training step stay what they are.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunetv2_mapo.guards.checkpoint import BEST, LATEST, Begun, Continuable, read_checkpoint
from nnunetv2_mapo.guards.checks import Checked
from nnunetv2_mapo.guards.fine_tuning import FineTunable
from nnunetv2_mapo.guards.network_check import check_network
from nnunetv2_mapo.guards.steps import StepGuard
from nnunetv2_mapo.method.cases import channels_of, labels_of, load_case
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dataset import (
    PreferenceDataset,
    Preferences,
    carry_preferences,
    split_preferences,
)
from nnunetv2_mapo.method.dropout import (
    StochasticDropout,
    find_switch,
    preference_rates,
    sample_rates,
)
from nnunetv2_mapo.method.loss import (
    STEP_KEYS,
    Disagreement,
    MAPOLoss,
    PreferenceTarget,
    find_disagreement,
)
from nnunetv2_mapo.method.mining import make_miner
from nnunetv2_mapo.method.progress import (
    plot_progress,
    register_keys,
    round_values,
    step_means,
)
from nnunetv2_mapo.method.rates import find_rates, with_rates
from nnunetv2_mapo.method.reference import REFERENCE, update_average, write_reference
from nnunetv2_mapo.method.rounds import RoundSummary, mine_round, settle_values
from nnunetv2_mapo.method.sampling import full_resolution, make_sampler
from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.support.files import WriteError
from nnunetv2_mapo.support.randomness import untouched
from nnunetv2_mapo.support.weights import hash_weights

__all__ = ["MAPOTrainer", "nnUNetTrainer_MAPO"]


class MAPOTrainer(Checked, Continuable, FineTunable):
    """Mixin that trains with MAPO: `class X_MAPO(MAPOTrainer, X)` for any trainer X of nnU-Net.

    Attributes:
        mapo: Settings; a variant overrides this attribute and nothing else.
    """

    mapo = MAPOConfig()

    _reference: nn.Module | None = None
    _mined: Round | None = None
    _summary: RoundSummary | None = None
    num_epochs: int
    initial_lr: float
    warmup_duration_whole_net: int

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        """Check the settings before nnU-Net makes anything."""
        # Not in __init__: nnU-Net holds its signature against its own local variables.
        if not isinstance(cls.mapo, MAPOConfig):
            message = f"{cls.__name__}.mapo is {cls.mapo!r}: a MAPOConfig(…) is needed."
            raise TypeError(message)
        cls.mapo.validate()
        cls._check_environment()
        return super().__new__(cls)

    # Set-up ---------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Build everything as the base trainer does, then hook dropout into its network."""
        self.num_dimensions = len(self.configuration_manager.patch_size)
        self.num_epochs = self.mapo.num_epochs(self.num_dimensions, self.num_epochs)
        self.initial_lr *= self.mapo.learning_rate_factor
        if hasattr(self, "warmup_duration_whole_net"):  # epochs in which nnU-Net raises the rate
            shortened = round(self.warmup_duration_whole_net * self.mapo.num_epochs_factor)
            self.warmup_duration_whole_net = max(1, shortened)
        self.schedule = self.mapo.schedule(self.num_epochs, self.num_dimensions)
        self.rates = self.mapo.training_rates(self.num_dimensions)
        self.labels = labels_of(self.label_manager)
        self.guard = StepGuard()
        super().initialize()
        self.dropout = StochasticDropout(
            self._plain_network(),
            self.labels.num_heads,
            self.mapo.granularity,
            include=self.mapo.dropout_include,
            exclude=self.mapo.dropout_exclude,
        )
        num_image_channels = len(channels_of(self.dataset_json))
        self.sampler = make_sampler(
            self.mapo, self.num_dimensions, self.dropout, num_image_channels
        )

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's optimiser and schedule, or the paper's if the settings ask for it."""
        learning_rate = self.mapo.adam_learning_rate
        if learning_rate is None:
            optimizer, scheduler = super().configure_optimizers(*args, **kwargs)
        else:
            adam = torch.optim.Adam if self.num_dimensions == 2 else torch.optim.AdamW
            optimizer = adam(self.network.parameters(), learning_rate)
            scheduler = PolyLRScheduler(optimizer, learning_rate, self.num_epochs, exponent=0)
        self.guard.watch(optimizer)
        return optimizer, scheduler

    def _build_loss(self) -> MAPOLoss:
        return MAPOLoss(super()._build_loss(), self.labels, self.mapo)

    def on_train_start(self) -> None:
        """Check the data and what is continued, then start as the base trainer does."""
        self._check_data()
        base = self._find_base()
        if not self.was_initialized:
            self.initialize()
        if base is not None:
            self._start_from_base(base)
        self._check_earlier_training()
        register_keys(self.logger.local_logger.my_fantastic_logging, self.current_epoch)
        self.logger.update_config({"mapo": self.mapo.to_dict()})  # for W&B
        self.print_to_log_file(
            f"MAPO: {self.schedule}; dropout after {len(self.dropout.sites)} layers; {self.mapo}"
        )
        self._check_network()
        super().on_train_start()
        if self.current_epoch:
            self.print_to_log_file(f"MAPO: continued {self._describe_progress()}")

    def _check_network(self) -> None:
        shape = (self.num_input_channels, *self.configuration_manager.patch_size)
        with self._single_output() as network:
            notes = check_network(network, self.dropout, self.labels.num_heads, shape, self.device)
        for note in notes:
            self.print_to_log_file(f"MAPO: {note}")

    # The method: warm-up -> (mining -> preference optimisation) x rounds --------------------------

    def on_epoch_start(self) -> None:
        """Begin a round where the schedule says so, and open it where it is not open yet."""
        self._restore_random_state()
        number = self.schedule.stage(self.current_epoch).round
        if number > self._begun.round:
            self._begin_round(number)
        if number and (self._mined is None or self._mined.origin["round"] != number):
            with untouched(self.device):  # a continued training opens the round once more
                self._open_round(number)
        super().on_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The base trainer's step, with dropout and, in the preference stage, preferences."""
        rates = sample_rates(self.rates, len(batch["data"]), self.device)
        batch, rates = self._add_preferences(batch, rates)
        has_dropout = self.mapo.has_dropout(is_warmup=self._mined is None)
        with self.dropout.at(rates) if has_dropout else nullcontext():
            output = super().train_step(batch)
        if self._reference is not None and self.mapo.reference_update == "average":
            update_average(self._reference, self._plain_network(), self.mapo.reference_decay)
        output = {**output, **self.loss.step_values()}
        self.guard.check(output, self.current_epoch, batch.get("keys", ()))
        return output

    def _begin_round(self, number: int) -> None:
        if self._begun.round == 0:
            self._save_latest()  # what follows may fail, such as for want of disk space
            self._start_from_warmup()
        weights = self._plain_network().state_dict()
        policy = hash_weights(weights)
        becomes_reference = not self._begun.reference or self.mapo.reference_update == "round"
        self._begun = Begun(number, policy, policy if becomes_reference else self._begun.reference)
        self._save_latest()  # mining can be continued from here
        if becomes_reference:
            self._reference = None
            if self.local_rank == 0:
                write_reference(self._folder / REFERENCE, weights)

    def _save_latest(self) -> None:
        self.current_epoch -= 1  # nnU-Net stores the epoch after the current one
        self.save_checkpoint(str(self._folder / LATEST))
        self.current_epoch += 1

    def _start_from_warmup(self) -> None:
        """Best warm-up weights become the policy; no momentum."""
        best, epoch = self._folder / BEST, self.current_epoch
        self._barrier()  # the first rank may still be writing it
        if self.mapo.start_from == "best" and best.is_file() and not self.disable_checkpointing:
            checkpoint = read_checkpoint(best, needed=("current_epoch",))
            self._plain_network().load_state_dict(checkpoint["network_weights"])
            epoch = checkpoint["current_epoch"]
        self.print_to_log_file(f"MAPO: preferences start from the weights after {epoch} epochs")
        self.optimizer.state.clear()

    def _open_round(self, number: int) -> None:
        self._shut_down_dataloaders()
        if self._reference is None:
            self._reference = self._load_reference()
        self._mined = self._mine(number)
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()

    def _mine(self, number: int) -> Round:
        """Mine the cases of a round that are not mined yet, shared among the ranks."""
        dataset, _ = super().get_tr_and_val_datasets()
        read = partial(load_case, dataset, self.label_manager)
        self._log(f"mining round {number}")
        with self._single_output() as network:
            plan = self.configuration_manager
            miner = make_miner(self.mapo, network, self.sampler, self.labels, plan, self.device)
            mined = self._round(number)
            if self.mapo.finds_rates:
                find = partial(find_rates, miner, read, dataset.identifiers, number, self._log)
                miner = with_rates(miner, settle_values(mined, find))
            self._summary = mine_round(miner, read, dataset.identifiers, mined, self._log)
        return mined

    def _log(self, message: str) -> None:
        self.print_to_log_file(f"MAPO: {message}")

    def _add_preferences(
        self, batch: dict[str, Any], rates: Tensor
    ) -> tuple[dict[str, Any], Tensor]:
        """Batch with a `PreferenceTarget`, and its rates; without preferences both as they are."""
        scales = self._get_deep_supervision_scales()
        split = split_preferences(batch["target"], num_scales=scales and len(scales))
        if self._mined is None or split.preferences is None:
            return batch, rates
        data = batch["data"].to(self.device, non_blocking=True)
        chosen, rejected, weights = Preferences.of(
            split.preferences.to(self.device, non_blocking=True)
        )
        disagreement = find_disagreement(
            chosen, rejected, self.labels, self.mapo.likelihood, weights
        )
        rates = preference_rates(rates, disagreement.has_pair, self.mapo.preference_dropout)
        reference_logits = self._reference_logits(data, disagreement, rates)
        target = PreferenceTarget(split.target, disagreement, reference_logits)
        return {**batch, "data": data, "target": target}, rates

    @torch.no_grad()
    def _reference_logits(self, data: Tensor, disagreement: Disagreement, rates: Tensor) -> Tensor:
        """Reference's logits at the disagreement voxels, under the conditions of the policy."""
        logits = torch.zeros(disagreement.heads.shape, device=self.device)
        if self._reference is None or disagreement.voxels.shape[1] == 0:
            return logits
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            if self.mapo.preference_dropout == "same masks":
                # the policy, which comes next, draws the same numbers
                with untouched(self.device), find_switch(self._reference).at(rates):
                    return disagreement.gather(full_resolution(self._reference(data)))
            has_pair = disagreement.has_pair  # patches without a disagreement are not computed
            outputs = full_resolution(self._reference(data[has_pair]))
        logits[has_pair] = disagreement.of(has_pair).gather(outputs)
        return logits

    # What nnU-Net asks for ------------------------------------------------------------------------

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """The base trainer's datasets; training cases with their preferences in a round."""
        training, validation = super().get_tr_and_val_datasets()
        if self._mined is not None:
            training = PreferenceDataset(training, self._mined)
        return training, validation

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's transforms, which carry chosen and rejected in a round."""
        transforms = super().get_training_transforms(*args, **kwargs)
        if self._mined is None:
            return transforms
        return carry_preferences(transforms, num_channels=3 if self.mapo.pair == "region" else 2)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the means of MAPO's values besides the base trainer's."""
        is_finite = [output for output in train_outputs if math.isfinite(output["loss"])]
        super().on_train_epoch_end(is_finite or train_outputs)
        if num_skipped := self.guard.reset():
            steps = f"{num_skipped} of {len(train_outputs)} steps"
            self.print_to_log_file(f"MAPO: WARNING: {steps} were not finite and skipped")
        values = {**step_means(train_outputs), **round_values(self._summary)}
        for key, value in values.items():
            self.logger.log(key, value, self.current_epoch)
        if self._mined is not None:
            shown = ", ".join(f"{key} {values[key]:.4f}" for key in STEP_KEYS)
            self.print_to_log_file(f"MAPO: {shown}")

    def on_epoch_end(self) -> None:
        """Draw `progress_mapo.png` besides nnU-Net's `progress.png`."""
        super().on_epoch_end()
        if self.local_rank == 0:
            logged = self.logger.local_logger.my_fantastic_logging
            try:
                plot_progress(self._folder, logged, self.schedule.stages)
            except WriteError as error:  # a picture is no reason to stop
                self.print_to_log_file(f"MAPO: WARNING: {error}")

    def _shut_down_dataloaders(self) -> None:
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):  # nnU-Net's loaders with worker processes
                loader._finish()


class nnUNetTrainer_MAPO(MAPOTrainer, nnUNetTrainer):  # type: ignore[misc]  # nnU-Net ships no types
    """nnU-Net's trainer with MAPO."""
