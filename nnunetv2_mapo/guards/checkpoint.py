"""Checkpoints, the reference's file, and what a training that is continued must agree with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_mapo.guards.lock import lock_folder
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.method.reference import (
    REFERENCE,
    build_reference,
    read_reference,
    write_reference,
)
from nnunetv2_mapo.method.store import PREFERENCES, Round, StoreError
from nnunetv2_mapo.support.files import UNFINISHED, complete_or_absent, hash_json
from nnunetv2_mapo.support.randomness import read_state, write_state
from nnunetv2_mapo.support.weights import compare_shapes, hash_shapes, hash_weights

BEST, LATEST = "checkpoint_best.pth", "checkpoint_latest.pth"
_Base: Any = object  # to mypy, everything that a trainer inherits is Any


@dataclass(frozen=True)
class Begun:
    """How far the preference stage has come; part of every checkpoint.

    Attributes:
        round: Latest round that was begun, 0 in the warm-up.
        policy: Hash of the weights that the round mines with.
        reference: Hash of the reference's weights.
    """

    round: int = 0
    policy: str = ""
    reference: str = ""


class Continuable(_Base):  # type: ignore[misc]  # nnU-Net ships no types
    """Part of `MAPOTrainer` that makes a training continue where it was, or refuses to.

    Attributes:
        mapo: Settings.
    """

    mapo = MAPOConfig()

    _begun = Begun()
    _saved_config: dict[str, Any] | None = None
    _random_state: dict[str, Any] | None = None
    _fine_tuned: dict[str, Any] | None = None
    _reference: nn.Module | None = None
    _saved_average: dict[str, Any] | None = None

    def save_checkpoint(self, filename: str) -> None:
        """The base trainer's checkpoint plus the key `mapo`, complete or not at all.

        Raises:
            WriteError: The disk is full; the earlier checkpoint of that name is still there.
        """
        if self.local_rank > 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with complete_or_absent(Path(filename), self._count_checkpoint_bytes()) as unfinished:
            super().save_checkpoint(str(unfinished))
            checkpoint = torch.load(unfinished, map_location="cpu", weights_only=False)
            checkpoint["mapo"] = {
                "config": self.mapo.to_dict(),
                "begun": asdict(self._begun),
                "random_state": read_state(self.device),
                "weights": hash_weights(checkpoint["network_weights"]),
                "base": self._fine_tuned,
                "reference": self._read_average(),
            }
            torch.save(checkpoint, unfinished)

    def _read_average(self) -> dict[str, Any] | None:
        """Reference that moves with each step: its file would not be of the same moment."""
        if self._reference is None:  # the loaded one is not needed before the round is opened
            return self._saved_average
        if self.mapo.reference_update != "average":
            return None
        weights = self._reference.state_dict()
        return {"weights": weights, "sha256": hash_weights(weights)}

    def _count_checkpoint_bytes(self) -> int:
        average = self._read_average() or {"weights": {}}
        network = self._plain_network()
        states = (network.state_dict(), average["weights"], *self.optimizer.state.values())
        tensors = [value for state in states for value in state.values()]
        # by memory: nnU-Net's networks have weights under several names, which are saved once
        sizes = {each.data_ptr(): each.nbytes for each in tensors if isinstance(each, Tensor)}
        return sum(sizes.values())

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """The base trainer's, plus how far MAPO had come; a stock checkpoint is a warm-up's.

        Raises:
            ValueError: The file is damaged, no checkpoint of nnU-Net, or of another network.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint = read_checkpoint(Path(filename_or_checkpoint), needed=_NEEDED)
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except RuntimeError as error:
            weights = self._plain_network().state_dict()
            differences = compare_shapes(checkpoint["network_weights"], weights)
            if not differences:
                raise
            message = (
                f"{filename_or_checkpoint} holds the weights of another network than the one of "
                f"{self.plans_manager.plans_name}, {self.configuration_name}: "
                f"{'; '.join(differences)}. Use the trainer, plans, configuration and data set "
                "that it was trained with, or train without --c under another trainer's name."
            )
            raise ValueError(message) from error
        saved = checkpoint.get("mapo", {"config": None, "begun": {}})
        self._saved_config, self._begun = saved["config"], Begun(**saved["begun"])
        self._random_state, self._fine_tuned = saved.get("random_state"), saved.get("base")
        self._saved_average = saved.get("reference")
        if self._saved_average and (
            hash_weights(self._saved_average["weights"]) != self._saved_average["sha256"]
        ):
            message = f"{filename_or_checkpoint} is damaged, the reference in it. {_ADVICE}"
            raise ValueError(message)

    def _restore_random_state(self) -> None:
        """Go on with the random numbers of the checkpoint that was loaded, once."""
        if self._random_state is not None and not self.is_ddp:  # it is the first rank's
            write_state(self._random_state, self.device)
        self._random_state = None

    def _check_earlier_training(self) -> None:
        """Refuse to continue with other settings or foreign pairs; clear up before a new start.

        Raises:
            InUseError: Another process trains in the same folder.
            ValueError: The settings differ from those of the training that is continued.
            StoreError: The preference store was made by other plans, labels, data …
        """
        if self.local_rank == 0:
            lock_folder(self._folder)
        if self._saved_config is not None and (
            differences := self.mapo.differences(self._saved_config)
        ):
            message = (
                f"{type(self).__name__} cannot be continued with other settings: "
                f"{'; '.join(differences)}. Restore them, or train without --c under another name."
            )
            raise ValueError(message)
        if self._begun.round:
            mined = self._round(self._begun.round)
            if differences := mined.find_foreign():
                message = (
                    f"The preferences in {mined.folder} are not of this training: "
                    f"{'; '.join(differences)}. Restore what changed, or delete the folder and "
                    "continue: the round is then mined again."
                )
                raise StoreError(message)
        elif self.current_epoch == 0 and self.local_rank == 0:
            shutil.rmtree(self._folder / PREFERENCES, ignore_errors=True)
            (self._folder / REFERENCE).unlink(missing_ok=True)
        if self.local_rank == 0:
            for leftover in self._folder.rglob(f"*{UNFINISHED}"):
                leftover.unlink()

    def _describe_progress(self) -> str:
        epochs = f"after {self.current_epoch} epoch{'s' if self.current_epoch > 1 else ''}"
        if self.current_epoch >= self.num_epochs:
            return f"{epochs}: the training is complete"
        number = self.schedule.stage(self.current_epoch).round
        return f"{epochs}, in {f'round {number}' if number else 'the warm-up'}"

    def _load_reference(self) -> nn.Module:
        """Reference network from its file; if that is missing or damaged, from what is left."""
        self._barrier()  # the first rank may still be writing it
        path = self._folder / REFERENCE
        weights: dict[str, Tensor] | None
        if self._saved_average is not None:
            weights = self._saved_average["weights"]
            self._saved_average = None
        else:
            weights = read_reference(path, self._begun.reference, self.device)
        if weights is None:
            weights = self._replace_reference(path)
        with self._single_output() as network:
            reference = build_reference(network, weights)
        if self._do_i_compile():
            reference.compile()
        return reference

    def _replace_reference(self, path: Path) -> dict[str, Tensor]:
        """Take the same weights from elsewhere, else the policy, and then mine anew."""
        best = self._folder / BEST
        weights = self._plain_network().state_dict()
        source = "the policy"  # of a training that was stopped before the file was written
        if hash_weights(weights) != self._begun.reference and best.is_file():
            weights, source = read_checkpoint(best)["network_weights"], str(best)
        if hash_weights(weights) == self._begun.reference:
            self.print_to_log_file(f"MAPO: {path} is missing or damaged; restored from {source}")
        else:
            self.print_to_log_file(
                f"MAPO: WARNING: {path} is missing or damaged and the weights it held are gone. "
                "The current weights become the reference, and this round is mined again."
            )
            weights = self._plain_network().state_dict()
            policy = hash_weights(weights)
            self._begun = Begun(self._begun.round, policy, policy)
        self._barrier()  # every rank has looked before the first one writes
        if self.local_rank == 0:
            write_reference(path, weights)
        return weights

    @property
    def _folder(self) -> Path:
        return Path(self.output_folder)

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

    def _barrier(self) -> None:
        if self.is_ddp:
            dist.barrier()


_NEEDED = ("current_epoch", "optimizer_state", "logging")  # to go on, not to predict
_ADVICE = (
    "Delete or move it: training with --c then takes the next of checkpoint_final.pth, "
    "checkpoint_latest.pth and checkpoint_best.pth, or starts anew."
)


def read_checkpoint(
    path: Path, advice: str = _ADVICE, *, needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net; its tensors stay on the disk until they are used.

    Args:
        path: The file.
        advice: What to do if it cannot be used.
        needed: Keys that it must have besides the network's weights.

    Raises:
        ValueError: It is damaged, something else, or lacks a key.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", mmap=True, weights_only=False
        )
        weights, *_ = (checkpoint[key] for key in ("network_weights", *needed))
        expected = checkpoint.get("mapo", {}).get("weights")  # a stock checkpoint has none
        is_damaged = expected is not None and expected != hash_weights(weights)
        reason = "its checksum is wrong" if is_damaged else ""
    except Exception as error:  # a damaged pickle may raise anything
        reason = f"{type(error).__name__}: {error}"
    if reason:
        message = f"{path} is damaged or no checkpoint of an nnU-Net training ({reason}). {advice}"
        raise ValueError(message)
    return checkpoint
