"""MAPO for any nnU-Net trainer: says when each stage of the method happens, not how.

`MAPOTrainer` stands in front of a trainer class and calls `super()` everywhere, so that the
trainer's own network, loss, optimiser, augmentation and training step stay what they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_mapo.guards import checkpoint as checkpoints
from nnunetv2_mapo.guards import start
from nnunetv2_mapo.guards.checkpoint import BEST, LATEST, Begun, Hashed, Loaded
from nnunetv2_mapo.guards.choices import learn_from_choices
from nnunetv2_mapo.guards.fine_tuning import find_base, start_from_base
from nnunetv2_mapo.guards.metric import check_metric
from nnunetv2_mapo.guards.network import check_network
from nnunetv2_mapo.guards.rehearsal import (
    check_deep_supervision,
    check_step,
    plant_round,
    rehearsing,
    require_preferences,
)
from nnunetv2_mapo.guards.steps import StepGuard
from nnunetv2_mapo.method.cases import channels_of, labels_of, open_case
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.dataset import (
    Preferences,
    carry_preferences,
    split_preferences,
    with_preferences,
)
from nnunetv2_mapo.method.dropout import StochasticDropout, preference_rates, sample_rates
from nnunetv2_mapo.method.fixed_patches import FixedPatches, fix_patches
from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.loss import STEP_KEYS, MAPOLoss, Pairs
from nnunetv2_mapo.method.mining import make_miner
from nnunetv2_mapo.method.progress import (
    are_none,
    best_by_metric,
    estimate_left,
    find_pairs,
    log_metric,
    plot_progress,
    register_keys,
    round_values,
    say_next,
    step_means,
)
from nnunetv2_mapo.method.rates import find_rates, with_rates
from nnunetv2_mapo.method.reference import (
    REFERENCE,
    build_reference,
    read_reference,
    reference_margins,
    update_average,
    write_reference,
)
from nnunetv2_mapo.method.rounds import (
    Ranks,
    draw_cases,
    mine_round,
    settle_values,
    thin_out_earlier,
)
from nnunetv2_mapo.method.sampling import CandidateSampler, make_sampler
from nnunetv2_mapo.method.schedule import Schedule
from nnunetv2_mapo.method.store import PREFERENCES, Round
from nnunetv2_mapo.method.summary import RoundSummary
from nnunetv2_mapo.method.unlabelled import UnlabelledImages, label_loss
from nnunetv2_mapo.support.device import read_state, untouched, write_state
from nnunetv2_mapo.support.files import WriteError, hash_json, hash_shapes, hash_weights
from nnunetv2_mapo.support.table import format_duration

__all__ = ["MAPOTrainer", "nnUNetTrainer_MAPO"]
_Base: Any = object  # to mypy, everything that a trainer inherits is Any


class MAPOTrainer(_Base):  # type: ignore[misc]  # nnU-Net ships no types
    """Trains with MAPO what it stands before: `class X_MAPO(MAPOTrainer, X)` for any trainer X.

    Attributes:
        mapo: Settings; a variant overrides this attribute and nothing else.
        rates: Dropout rates of training, of which each sample of a batch draws one.
        labels: Meaning of the network's heads.
        objective: Adds the preference loss to the base trainer's loss.
        dropout: Switch of the network's dropout, off but for training steps and candidates.
        sampler: Makes the candidates of a case.
        guard: Skips steps that are not finite.
        num_dimensions: Of the configuration's patch, 2 or 3.
    """

    mapo = MAPOConfig()

    rates: tuple[float, ...]
    labels: Labels
    objective: MAPOLoss
    dropout: StochasticDropout
    sampler: CandidateSampler
    guard: StepGuard
    num_dimensions: int
    # of nnU-Net's, what is changed here
    num_epochs: int
    initial_lr: float
    warmup_duration_whole_net: int
    loss: Any
    batch_size: int
    dataloader_train: Any
    dataloader_val: Any

    _is_new = False  # until the first checkpoint, of the rank that writes it
    _begun = Begun()  # how far the method has come; in every checkpoint
    _mined: Round | None = None  # pairs that are trained on; None in the warm-up
    _summary: RoundSummary | None = None  # what mining found in them
    _drawn: frozenset[str] | None = None  # cases that were mined; None: all
    _mining_s = 0.0  # how long that took
    _reference: nn.Module | None = None  # frozen network that the policy is compared with
    _unlabelled: UnlabelledImages | None = None  # that the rounds learn from instead
    _unlabelled_loader: Any = None
    _loads_unlabelled = False  # while the loader of these is made
    _fixed_patches: FixedPatches | None = None  # what `checkpoint_best` is the best on
    _origin: dict[str, Any] | None = None  # of the weights that a fine-tuning started from
    _loaded = Loaded()  # from the checkpoint of a training that is continued
    _hashed: Hashed | None = None  # weights whose hash the next checkpoint need not compute

    # The method: warm-up -> (mining -> preference optimisation) x rounds --------------------------

    def on_epoch_start(self) -> None:
        """Begin a round where the schedule says so, and open it where it is not open yet."""
        self._restore_random_state()
        number = self._due_round()
        if number > self._begun.round:
            self._begin_round(number)
        if number and (self._mined is None or self._mined.origin["round"] != number):
            with untouched(self.device):  # a continued training opens the round once more
                self._open_round(number)
        super().on_epoch_start()

    def _begin_round(self, number: int) -> None:
        policy = self._start_from_warmup() if self._begun.round == 0 else None
        weights = self._plain_network().state_dict()
        policy = policy or hash_weights(weights)
        becomes_reference = not self._begun.reference or self.mapo.reference_update == "round"
        reference = policy if becomes_reference else self._begun.reference
        first_epochs = (*self._begun.first_epochs, self.current_epoch)
        self._begun = Begun(number, policy, reference, first_epochs)
        with patch.object(self, "_hashed", Hashed(weights, policy)):
            self._save_latest()  # mining can be continued from here
        if becomes_reference:
            self._reference = None
            if self.local_rank == 0:
                write_reference(self._folder / REFERENCE, weights)

    def _start_from_warmup(self) -> str | None:
        """Best warm-up weights become the policy; no momentum. Their hash, if a file said it."""
        best, epoch, known = self._folder / BEST, self.current_epoch, None
        Ranks.find().gather(None)  # the first rank may still be writing it
        if self.mapo.start_from == "best" and best.is_file() and not self.disable_checkpointing:
            try:
                checkpoint = checkpoints.read_checkpoint(best, needed=("current_epoch",))
            except ValueError:
                self._save_latest()  # the warm-up is done, whatever its file is worth
                raise
            self._plain_network().load_state_dict(checkpoint["network_weights"])
            epoch, known = checkpoint["current_epoch"], checkpoint.get("mapo", {}).get("weights")
        self._log(f"preferences start from the weights after {epoch} epochs")
        self.optimizer.state.clear()
        return known

    def _open_round(self, number: int) -> None:
        self.finish_loaders()
        if self._reference is None and self.mapo.needs_network:
            self._reference = self._load_reference()
        if self._unlabelled is None:
            self._mined = self._mine(number)
        else:
            self._mined = replace(self._unlabelled.stacks, origin={"round": number})
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()

    def finish_loaders(self) -> None:
        """Stop the worker processes of the loaders, if they have some."""
        _finish(self.dataloader_train, self.dataloader_val, self._unlabelled_loader)

    def _mine(self, number: int) -> Round:
        """Mine the cases of a round that are not mined yet, shared among the ranks."""
        started = time.monotonic()
        dataset, _ = super().get_tr_and_val_datasets()
        reference = self._read_reference() if self.mapo.reference == "cached" else None
        read = partial(open_case, dataset, self.label_manager)
        drawn = draw_cases(dataset.identifiers, self.mapo, number)
        self._log(f"mining round {number}: {len(drawn)} of {len(dataset.identifiers)} cases")
        with self._single_output() as network:
            plan = self.configuration_manager
            miner = make_miner(self.mapo, network, self.sampler, self.labels, plan, self.device)
            miner = replace(miner, reference=reference)
            mined = self._round(number)
            if self.mapo.finds_rates:
                find = partial(find_rates, miner, read, dataset.identifiers, number, self._log)
                miner = with_rates(miner, settle_values(mined, find))
            self._summary = mine_round(miner, read, drawn, mined, self._log)
        self._drawn = frozenset(drawn)
        if self.local_rank == 0 and not self.mapo.keep_rounds:
            thin_out_earlier(mined)
        self._mining_s = time.monotonic() - started
        return mined

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The base trainer's step, with dropout and, in the preference stage, preferences."""
        has_dropout = self.mapo.has_dropout(is_warmup=self._mined is None)
        if has_dropout:
            rates = sample_rates(self.rates, len(batch["data"]), self.device)
        else:  # draws no random number: the warm-up is the base trainer's
            rates = torch.zeros(len(batch["data"]), device=self.device)
        batch, pairs, rates = self._take_preferences(batch, rates)
        more = self._unlabelled_loss if self._learns_unlabelled else None
        self.loss = self.objective.attach(self.loss)  # the trainer may have made another one
        with (
            self.objective.of(pairs, more),
            self.dropout.at(rates) if has_dropout else nullcontext(),
        ):
            output = super().train_step(batch)
        if pairs is not None or more is not None:
            check_step(type(self).__name__, self.objective)
        if self._reference is not None and self.mapo.reference_update == "average":
            update_average(self._reference, self._plain_network(), self.mapo.reference_decay)
        output = {**output, **self.objective.step_values()}
        self.guard.check(output, self.current_epoch, batch.get("keys", ()))
        return output

    def _take_preferences(
        self, batch: dict[str, Any], rates: Tensor
    ) -> tuple[dict[str, Any], Pairs | None, Tensor]:
        """Batch as nnU-Net makes it, its pairs, and its rates; in the warm-up without pairs."""
        if self._mined is None or self._unlabelled is not None:
            return batch, None, rates
        batch, pairs = self._find_pairs(batch)
        dropout = self.mapo.preference_dropout
        rates = preference_rates(rates, pairs.disagreement.has_pair, dropout)
        same_rates = rates if dropout == "same masks" else None
        return batch, self._ask_reference(batch["data"], pairs, same_rates), rates

    def _find_pairs(self, batch: dict[str, Any]) -> tuple[dict[str, Any], Pairs]:
        """Batch as nnU-Net makes it, its images on the device, and its pairs as they are stored."""
        scales = self._get_deep_supervision_scales()
        split = split_preferences(batch["target"], num_scales=scales and len(scales))
        preferences = Preferences.of(require_preferences(split.preferences))
        # before they are on the device, which would have to be waited for
        disagreement, margins = preferences.find_disagreement(self.labels, self.mapo.likelihood)
        data = batch["data"].to(self.device, non_blocking=True)
        batch = {**batch, "data": data, "target": split.target}
        margins = margins.to(self.device, non_blocking=True)
        return batch, Pairs(disagreement.to(self.device), margins)

    def _ask_reference(self, data: Tensor, pairs: Pairs, rates: Tensor | None = None) -> Pairs:
        """Pairs with the margins of the reference network, if there is one."""
        if self._reference is None:
            return pairs
        margins = reference_margins(self._reference, data, pairs.disagreement, rates)
        return replace(pairs, reference_margins=margins)

    @property
    def _learns_unlabelled(self) -> bool:
        """Whether the steps of now are about images without outlines as well."""
        return self._unlabelled is not None and self._mined is not None

    def _unlabelled_loss(self, base: nn.Module) -> Tensor:
        """Loss of a batch of images without outlines: of their pairs, or of what is their label."""
        batch = next(self._unlabelled_loader)
        no_dropout = torch.zeros(len(batch["data"]), device=self.device)
        if not self.mapo.has_preferences:
            with self.dropout.at(no_dropout):
                return label_loss(self.network, batch, base, self.device)
        batch, pairs = self._find_pairs(batch)
        pairs = self._ask_reference(batch["data"], pairs)
        with self.dropout.at(no_dropout):
            output = self.network(batch["data"])
        return self.objective.preference_loss(output, pairs)

    # Set-up ---------------------------------------------------------------------------------------

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        """Check the settings before nnU-Net makes anything."""
        # Not in __init__: nnU-Net holds its signature against its own local variables.
        start.check_trainer(cls)
        return super().__new__(cls)

    def initialize(self) -> None:
        """Build everything as the base trainer does, then hook dropout into its network."""
        self.num_dimensions = len(self.configuration_manager.patch_size)
        self.num_epochs = self.mapo.num_epochs(self.num_dimensions, self.num_epochs)
        self.initial_lr *= self.mapo.learning_rate_factor
        if hasattr(self, "warmup_duration_whole_net"):  # epochs in which nnU-Net raises the rate
            shortened = round(self.warmup_duration_whole_net * self.mapo.num_epochs_factor)
            self.warmup_duration_whole_net = max(1, shortened)
        self.rates = self.mapo.training_rates(self.num_dimensions)
        self.labels = labels_of(self.label_manager)
        self.guard = StepGuard()
        self.objective = MAPOLoss(self.mapo)
        _ = self.schedule  # refuses what cannot be planned
        super().initialize()
        self.loss = self.objective.attach(self.loss)
        shape = (1, self.num_input_channels, *self.configuration_manager.patch_size)
        with untouched(self.device):
            self.dropout = StochasticDropout(
                self._plain_network(),
                self.labels.num_heads,
                self.mapo.granularity,
                include=self.mapo.dropout_include,
                exclude=self.mapo.dropout_exclude,
                images=torch.zeros(shape, device=self.device),
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

    def on_train_start(self) -> None:
        """Check what the whole training needs, then start as the base trainer does."""
        start.check_fold(self.fold)
        start.check_preprocessed(
            Path(self.preprocessed_dataset_folder),
            self.plans_manager.dataset_name,
            self.configuration_name,
        )
        base = find_base(self)
        if not self.was_initialized:
            self.initialize()
        # What is asked of the trainer from here on is asked after `initialize`, as nnU-Net does.
        if base is not None:
            self._origin = start_from_base(self, self._plain_network(), base)
        training, validation = super().get_tr_and_val_datasets()
        start.check_foreground(training)
        self._check_earlier_training()
        self._check_metric(training, validation)
        if self.mapo.learns_unlabelled:
            self._unlabelled = learn_from_choices(self, validation, self._folder / PREFERENCES)
        register_keys(self.logger.local_logger.my_fantastic_logging, self.current_epoch)
        self.logger.update_config({"mapo": self.mapo.to_dict()})  # for W&B
        self._log(f"{self.schedule}; dropout after {len(self.dropout.sites)} layers; {self.mapo}")
        check_deep_supervision(self)
        self._check_network()
        super().on_train_start()
        self._rehearse()
        if self.current_epoch:
            self._log(f"continued {self._describe_progress()}")

    def _rehearse(self) -> None:
        """Take one step of the preference stage with planted pairs, and undo it."""
        if len(self.schedule.stages) == 1 or self.current_epoch >= self.num_epochs:
            return
        dataset, _ = super().get_tr_and_val_datasets()
        with rehearsing(self):
            plain, patch_size = self._plain_network(), self.configuration_manager.patch_size
            self._mined = plant_round(dataset, self.mapo, patch_size)
            if self.mapo.needs_network:
                with self._single_output() as network:
                    self._reference = build_reference(network, plain.state_dict())
            plain.train()
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
            try:
                self.train_step(next(self.dataloader_train))
            finally:
                self.finish_loaders()

    def _check_earlier_training(self) -> None:
        if self.local_rank == 0:
            start.lock_folder(self._folder)
        start.check_settings(type(self).__name__, self.mapo, self._loaded.settings)
        if self._loaded.schedule not in (None, str(self.schedule)):
            self._log(f"NOTICE: another length than before, which was: {self._loaded.schedule}")
        if self._begun.round:
            start.check_pairs(self._round(self._begun.round))
        if self.local_rank == 0:
            start.clear_folder(self._folder)
            self._is_new = not (self.current_epoch or self._begun.round)

    def _check_metric(self, training: Any, validation: Any) -> None:
        """Hold the metric against its contract; fix the patches that it is to be measured on."""
        plan = self.configuration_manager
        for note in check_metric(self.mapo, self.labels, plan.spacing, training):
            self._log(note)
        if self.mapo.best_by == "metric":
            self._fixed_patches = fix_patches(
                self.mapo, self.labels, plan, validation, self.label_manager
            )

    def _check_network(self) -> None:
        shape = (self.num_input_channels, *self.configuration_manager.patch_size)
        with self._single_output() as network:
            notes = check_network(network, self.dropout, self.labels.num_heads, shape, self.device)
        for note in notes:
            self._log(note)

    # What nnU-Net asks for ------------------------------------------------------------------------

    def do_split(self) -> tuple[Any, Any]:
        """The base trainer's split, checked."""
        folder = self.preprocessed_dataset_folder
        splits_file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        try:
            training, validation = super().do_split()
        except ValueError:
            start.refuse_few_cases(folder, splits_file)
            raise
        dataset_class = self.dataset_class or infer_dataset_class(folder)
        start.check_split(training, validation, dataset_class.get_identifiers(folder), splits_file)
        return training, validation

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """The base trainer's datasets; training cases with their preferences in a round."""
        training, validation = super().get_tr_and_val_datasets()
        if self._unlabelled is not None:
            if self._loads_unlabelled:
                labels = self.label_manager.all_labels
                training = self._unlabelled.as_training_cases(training, labels)
        elif self._mined is not None:
            training = with_preferences(training, self._mined, self._drawn)
        return training, validation

    def get_dataloaders(self) -> tuple[Any, Any]:
        """The base trainer's loaders, and in a round of choices one of unlabelled images."""
        num_unlabelled = 0
        if self._learns_unlabelled:
            num_unlabelled = self.mapo.num_unlabelled(self.batch_size)
            self._unlabelled_loader = self._load_unlabelled(num_unlabelled)
        with patch.object(self, "batch_size", max(1, self.batch_size - num_unlabelled)):
            loaders: tuple[Any, Any] = super().get_dataloaders()
        return loaders

    def _load_unlabelled(self, num_patches: int) -> Any:
        """Loader of unlabelled images, which the base trainer makes like its own one."""
        with patch.multiple(self, batch_size=num_patches, _loads_unlabelled=True):
            loader, validation = super().get_dataloaders()
        _finish(validation)
        return loader

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's transforms, which carry chosen and rejected in a round."""
        transforms = super().get_training_transforms(*args, **kwargs)
        if self._unlabelled is not None:
            carries = self._loads_unlabelled and self._unlabelled.has_pairs
        else:
            carries = self._mined is not None
        return carry_preferences(transforms, self.mapo.num_channels) if carries else transforms

    def on_train_end(self) -> None:
        """The base trainer's end; our own loader stops as well."""
        super().on_train_end()
        _finish(self._unlabelled_loader)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the means of MAPO's values besides the base trainer's."""
        is_finite = [output for output in train_outputs if math.isfinite(output["loss"])]
        super().on_train_epoch_end(is_finite or train_outputs)
        if num_skipped := self.guard.reset():
            steps = f"{num_skipped} of {len(train_outputs)} steps"
            self._log(f"WARNING: {steps} were not finite and skipped")
        values = {**step_means(train_outputs), **round_values(self._summary)}
        for key, value in values.items():
            self.logger.log(key, value, self.current_epoch)
        if self._mined is not None:
            self._log(", ".join(f"{key} {values[key]:.4f}" for key in STEP_KEYS))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """The base trainer's end, and the metric on the fixed patches."""
        super().on_validation_epoch_end(val_outputs)
        value = math.nan
        if self._fixed_patches is not None:
            with self._single_output() as network:
                value = self._fixed_patches.measure(network, self.device)
            self._log(f"metric on {len(self._fixed_patches.patches)} fixed patches: {value:.4f}")
        log_metric(self.logger, value, self.current_epoch)

    def perform_actual_validation(self, *args: Any, **kwargs: Any) -> None:
        """The base trainer's validation; the log ends with the command that comes next."""
        super().perform_actual_validation(*args, **kwargs)
        if self.mapo.num_rounds and self.mapo.has_preferences:
            logged = self.logger.local_logger.my_fantastic_logging
            has_pairs = not are_none(find_pairs(logged, self.schedule.stages))
            self._log(say_next(self, has_pairs=has_pairs or self.mapo.learns_unlabelled))

    def on_epoch_end(self) -> None:
        """Draw `progress_mapo.png` besides nnU-Net's `progress.png`."""
        by_metric = self._fixed_patches is not None
        with best_by_metric(self) if by_metric else nullcontext():
            super().on_epoch_end()
        if self.local_rank == 0:
            logged = self.logger.local_logger.my_fantastic_logging
            left = estimate_left(logged, self.schedule.stages, self._mining_s)
            bound = "at least" if self._mined is None and self.mapo.num_rounds else "about"
            self._log(f"{bound} {format_duration(left)} of training left")
            try:
                plot_progress(self._folder, logged, self.schedule.stages)
            except WriteError as error:  # a picture is no reason to stop
                self._log(f"WARNING: {error}")

    # Checkpoints ----------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """The base trainer's checkpoint plus the key `mapo`, complete or not at all.

        Raises:
            WriteError: The disk is full; the earlier checkpoint of that name is still there.
        """
        if self._is_new and not self.disable_checkpointing:
            self._is_new = False
            if place := start.set_aside(self._folder):
                self._log(f"NOTICE: what an earlier training left here is now in {place}")
        with checkpoints.adding_to_checkpoint(self._describe_state, self._hashed):
            super().save_checkpoint(filename)

    def _describe_state(self) -> dict[str, Any]:
        average = self._loaded.reference
        if self._reference is not None and self.mapo.reference_update == "average":
            # it moves with each step: its file would not be of the same moment
            average = self._reference.state_dict()
        return {
            "config": self.mapo.to_dict(),
            "begun": asdict(self._begun),
            "schedule": str(self.schedule),
            "random_state": read_state(self.device),
            "base": self._origin,
            "choices": self._unlabelled and self._unlabelled.stacks.origin,
            "reference": average and {"weights": average, "sha256": hash_weights(average)},
        }

    def _save_latest(self) -> None:
        self.current_epoch -= 1  # nnU-Net stores the epoch after the current one
        self.save_checkpoint(str(self._folder / LATEST))
        self.current_epoch += 1

    def load_checkpoint(self, filename_or_checkpoint: Any = None, checkpoint: Any = None) -> None:
        """The base trainer's, plus how far MAPO had come; a stock checkpoint is a warm-up's.

        It is a file or its content, under the name that nnU-Net 2.8 gives it or a later one.

        Raises:
            ValueError: The file is damaged, no checkpoint of nnU-Net, or of another network.
        """
        source = filename_or_checkpoint if checkpoint is None else checkpoint
        name = "the checkpoint" if isinstance(source, dict) else str(source)
        if not self.was_initialized:
            self.initialize()
        content = checkpoints.read_checkpoint(source, needed=checkpoints.NEEDED)
        weights, network = content["network_weights"], self._plain_network()
        plans = f"{self.plans_manager.plans_name}, {self.configuration_name}"
        with (
            checkpoints.explaining_other_network(name, weights, network, plans=plans),
            checkpoints.already_read(name, content),
        ):
            super().load_checkpoint(name)
        mapo = content.get("mapo", {"begun": {}})
        self._begun, self._origin = Begun(**mapo["begun"]), mapo.get("base")
        self._loaded = Loaded.of(mapo)
        if not self._begun.first_epochs:  # of a version that did not say so
            stages = self.schedule.stages[1 : self._begun.round + 1]
            first_epochs = tuple(stage.first_epoch for stage in stages)
            self._begun = replace(self._begun, first_epochs=first_epochs)

    def _restore_random_state(self) -> None:
        """Go on with the random numbers of the checkpoint that was loaded, once."""
        if self._loaded.random_state is not None and not self.is_ddp:  # it is the first rank's
            write_state(self._loaded.random_state, self.device)
        self._loaded = replace(self._loaded, random_state=None)

    def _describe_progress(self) -> str:
        epochs = f"after {self.current_epoch} epoch{'s' if self.current_epoch > 1 else ''}"
        if self.current_epoch >= self.num_epochs:
            return f"{epochs}: the training is complete"
        number = self._due_round()
        return f"{epochs}, in {f'round {number}' if number else 'the warm-up'}"

    def _load_reference(self) -> nn.Module:
        """Network with the reference's weights."""
        weights = self._read_reference()
        with self._single_output() as network:
            reference = build_reference(network, weights)
        if self._do_i_compile():
            reference.compile()
        return reference

    def _read_reference(self) -> dict[str, Tensor]:
        """The reference's weights from their file; if it is missing or damaged, what is left."""
        Ranks.find().gather(None)  # the first rank may still be writing it
        path = self._folder / REFERENCE
        weights = self._loaded.reference
        self._loaded = replace(self._loaded, reference=None)
        if weights is None:
            weights = read_reference(path, self._begun.reference, self.device)
        if weights is None:
            policy = self._plain_network().state_dict()
            weights, self._begun, note = checkpoints.recover_reference(path, policy, self._begun)
            self._log(note)
            Ranks.find().gather(None)  # every rank has looked before the first one writes
            if self.local_rank == 0:
                write_reference(path, weights)
        return {name: weight.to(self.device) for name, weight in weights.items()}

    # What they share ------------------------------------------------------------------------------

    @property
    def schedule(self) -> Schedule:
        """Which epochs are warm-up, and which belong to which round; by `num_epochs` of now."""
        # not an attribute: a trainer may change its length at any time
        return self.mapo.schedule(self.num_epochs, self.num_dimensions, self._begun.first_epochs)

    def _due_round(self) -> int:
        """Round of the current epoch, 0 in the warm-up; none is left out."""
        return min(self.schedule.stage(self.current_epoch).round, self._begun.round + 1)

    @property
    def _folder(self) -> Path:
        return Path(self.output_folder)

    def _log(self, message: str) -> None:
        self.print_to_log_file(f"MAPO: {message}")

    def _round(self, number: int) -> Round:
        origin = {
            "round": number,
            "trainer": type(self).__name__,
            "dataset": self.plans_manager.dataset_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "labels": self.dataset_json["labels"],
            "network": hash_shapes(self._plain_network().state_dict()),
            "plans": hash_json(self.plans_manager.plans),
            "settings": self.mapo.to_dict(),
            "channels": self.mapo.num_channels,
            "policy": self._begun.policy,
        }
        return Round(self._folder / PREFERENCES / f"round_{number:02d}", origin)

    def _plain_network(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    @contextmanager
    def _single_output(self) -> Iterator[nn.Module]:
        """The plain network in evaluation mode without deep supervision."""
        self.set_deep_supervision_enabled(False)
        network = self._plain_network().eval()
        try:
            yield network
        finally:
            self.set_deep_supervision_enabled(self.enable_deep_supervision)


def _finish(*loaders: Any) -> None:
    for loader in loaders:
        if hasattr(loader, "_finish"):  # of batchgenerators' loaders with processes
            loader._finish()


class nnUNetTrainer_MAPO(MAPOTrainer, nnUNetTrainer):  # type: ignore[misc]  # nnU-Net ships no types
    """nnU-Net's trainer with MAPO."""
