"""A preview: open a model, mine some of its training cases at many rates, say what they tell."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunetv2_mapo.method.cases import open_case
from nnunetv2_mapo.method.config import RATES_2D, RATES_3D, MAPOConfig
from nnunetv2_mapo.method.mining import Miner, mine_within_memory
from nnunetv2_mapo.method.store import SampleRecord, StoreError
from nnunetv2_mapo.method.summary import HARDLY_LEARNT
from nnunetv2_mapo.method.volumes import Channel
from nnunetv2_mapo.support.device import OutOfMemoryError, choose_device
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.table import format_table, wrap
from nnunetv2_mapo.tools.models import TrainedModel, open_miner, open_model
from nnunetv2_mapo.tools.recommendation import (
    ENOUGH_PAIRS,
    CandidateDice,
    Settings,
    format_trainer,
    recommend,
)
from nnunetv2_mapo.tools.train_command import name_of, say_finish
from nnunetv2_mapo.tools.trainers import open_training_cases

CASE_TAU = 0.1  # at which two candidates make a pair, see docs/how-to/preview.md
RATES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
TAUS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # columns of the table
_FEW_SAMPLES = 20  # a share of fewer is uncertain by more than ten percent points


def run_preview(arguments: argparse.Namespace) -> None:
    """Run a preview from its parsed command line.

    Raises:
        CommandError: The model or its data cannot be used.
    """
    folder, device = arguments.model, choose_device(arguments.device)
    model = open_model(folder, arguments.fold, arguments.checkpoint, device)
    default = default_settings(model)
    rates = sorted({*(arguments.rates or RATES), *default.rates})
    try:
        cases = open_training_cases(model)
        chosen = space_evenly(sorted(map(str, cases.identifiers)), arguments.cases)
        mined = look_at(model, cases, chosen, rates, device)
    except StoreError as error:
        raise CommandError(str(error)) from error
    except OutOfMemoryError as error:
        message = (
            f"{device} has too little memory for a single window of the image at {len(rates)} "
            "dropout rates. Free memory there, look at fewer --rates, or take -device cpu."
        )
        raise CommandError(message) from error
    samples = [sample for case in chosen for sample in mined[case]]
    if not any(sample.has_foreground for sample in samples):
        message = f"None of {chosen} has foreground: look at more of them with --cases."
        raise CommandError(message)
    num_cases = len(chosen), len(cases.identifiers)
    preview = Preview(model, arguments.checkpoint, *num_cases, tuple(rates), samples, default)
    print(f"\n{preview}")


def space_evenly(identifiers: Sequence[str], number: int) -> list[str]:
    """So many of them, evenly spaced; all if there are no more."""
    number = min(number, len(identifiers))
    return [identifiers[place * len(identifiers) // number] for place in range(number)]


def default_settings(model: TrainedModel) -> Settings:
    """The paper's rates for the model's dimension, and a τ at which two candidates make a pair."""
    is_2d = len(model.configuration_manager.patch_size) == 2
    return Settings(RATES_2D if is_2d else RATES_3D, CASE_TAU)


def look_at(
    model: TrainedModel,
    cases: Any,
    identifiers: Sequence[str],
    rates: Sequence[float],
    device: torch.device,
) -> dict[str, list[SampleRecord]]:
    """Mine cases as the first round of a training with these weights and rates would.

    Args:
        model: Its network is as before afterwards.
        cases: nnU-Net's dataset.
        identifiers: Cases of it.
        rates: Dropout rate of each candidate.
        device: Where the network lies.

    Returns:
        Training samples of each case.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
    """
    trained = MAPOConfig.from_dict(model.mapo or {})
    config = MAPOConfig(  # samples are those of the default, whatever the model was trained with
        pair="case",
        rates_2d=tuple(rates),
        rates_3d=tuple(rates),
        rates="fixed",
        granularity=trained.granularity,
        reference="none",
        seed=trained.seed,
    )
    samples = {}
    with open_miner(model, config, device) as miner:
        for case in tqdm(identifiers, desc="preview", unit="case"):
            image, truth = open_case(cases, model.label_manager, case)
            mine = partial(Miner.mine, image=image, segmentation=Channel(truth, 0))
            seed = f"{config.seed}/1/{case}"  # of the first round
            miner, mined = mine_within_memory(miner, mine, seed, tqdm.write)
            samples[case] = mined.records
    return samples


@dataclass(frozen=True)
class Preview:
    """Everything that a preview found out; as text it is what is printed.

    Attributes:
        model: The model.
        checkpoint: File name of its checkpoint.
        num_cases: Training cases that were looked at.
        num_training: Training cases that there are.
        rates: Dropout rates that were looked at.
        samples: The cases' training samples; at least one has foreground.
        default: The paper's rates, and the usual τ of `pair="case"`.
    """

    model: TrainedModel
    checkpoint: str
    num_cases: int
    num_training: int
    rates: tuple[float, ...]
    samples: list[SampleRecord]
    default: Settings

    @cached_property
    def found(self) -> CandidateDice:
        """The samples with foreground; a slice without any seldom tells candidates apart."""
        dice = [sample.dice for sample in self.samples if sample.has_foreground]
        return CandidateDice(self.rates, np.array(dice))

    @cached_property
    def settings(self) -> dict[str, Settings]:
        """Default and, if they differ, recommended settings by name."""
        recommended = recommend(self.found, self.default)
        settings = {"default": self.default, "recommended": recommended}
        return settings if recommended != self.default else {"default": self.default}

    def __str__(self) -> str:
        model, num_samples = self.model, len(self.found.dice)
        counted = f"{self.num_cases} of {self.num_training} training cases: "
        counted += f"{num_samples} samples with foreground"
        if num_empty := len(self.samples) - num_samples:
            counted += f" ({num_empty} slices without any are left out)"
        lines = [
            f"{model.folder.parent.name}, {model.configuration}, fold {model.fold}, "
            f"{model.trainer_name}, {self.checkpoint}",
            counted,
            "",
            self._tabulate_dice(),
            "",
            self._describe_default(),
            "",
            self._tabulate_pairs(),
            "",
        ]
        for name, settings in self.settings.items():
            lines.append(
                f'With pair="case" and the {name} rates (to {settings.rates[-1]:g}) and tau '
                f"({settings.tau}) {self.found.count_pairs(settings)} of {num_samples} samples "
                "would have a pair."
            )
        return "\n".join([*lines, *self._advise(), *self._warn()])

    def _describe_default(self) -> str:
        """What `nnUNetTrainer_MAPO` would do here."""
        fall = MAPOConfig().rates_dice_fall
        rate = self.found.rate_at_fall(fall)
        limit = "at least " if rate == self.rates[-1] else "about "
        return wrap(
            f"nnUNetTrainer_MAPO finds its rates itself: here 0 to {limit}{rate:.2g}, where the "
            f"median Dice has lost {fall:.0%}. Every part in which a candidate then differs "
            'is preferred or not. Of pair="case", two whole candidates:'
        )

    def _tabulate_dice(self) -> str:
        lower, median, upper = self.found.quartiles()
        rows = [
            [f"{rate:g}", f"{m:.3f}", f"{low:.3f} to {up:.3f}", f"{m / max(median[0], 1e-9):.0%}"]
            for rate, low, m, up in zip(self.rates, lower, median, upper, strict=True)
        ]
        return format_table(["dropout rate", "median Dice", "quartiles", "of the plain"], rows)

    def _tabulate_pairs(self) -> str:
        taus = sorted({*TAUS, *(settings.tau for settings in self.settings.values())})
        rows = [
            [
                f"{name} (0 to {settings.rates[-1]:g})",
                *(f"{self.found.share_with_pair(settings._replace(tau=t)):.0%}" for t in taus),
            ]
            for name, settings in self.settings.items()
        ]
        return format_table(["samples with a pair at tau =", *(f"{t:g}" for t in taus)], rows)

    def _advise(self) -> list[str]:
        """What to train with, as lines."""
        *_, (name, best) = self.settings.items()
        default = MAPOConfig().granularity
        granularity = self.model.mapo["granularity"] if self.model.mapo else default
        as_it_is = ["", "Train with MAPO as it is, and its control:", *self._say_train("_MAPO")]
        if name == "default" and granularity == default:
            return as_it_is
        num_dimensions = len(self.model.configuration_manager.patch_size)
        return [
            *(as_it_is if granularity == default else []),
            "",
            f'To train with pair="case" and the {name} ones, save this as a file in a folder that',
            "nnUNet_extTrainer names:",
            "",
            format_trainer(best, num_dimensions, granularity),
            "Then train with it, and its control:",
            *self._say_train("_MAPO_Previewed"),
        ]

    def _say_train(self, variant: str) -> list[str]:
        """Commands that train a variant of the model's base trainer, and the control of that.

        The control is the base trainer itself: these variants have no dropout in training. What is
        trained already is not trained again.
        """
        model, lines = self.model, []
        if (name := name_of(model.folder)) is None:
            return []
        base = model.trainer_name.partition("_MAPO")[0]
        for trainer in (f"{base}{variant}", base):
            command = say_finish(model.folder, name._replace(trainer=trainer), model.fold)
            lines.append(f"  {command}" if command else f"  ({trainer} is trained already)")
        return lines

    def _warn(self) -> list[str]:
        *_, best = self.settings.values()
        has_learnt = self.found.quartiles()[1][0] >= HARDLY_LEARNT
        # A network that dropout does not move, or that knows nothing yet, needs more of it.
        needs_more = not has_learnt or not np.ptp(self.found.dice, axis=1).any()
        is_rough = len(self.found.dice) < _FEW_SAMPLES and self.num_cases < self.num_training
        notes = [
            (
                not has_learnt,
                "This network has hardly learnt anything yet, so its candidates say little about "
                "those of a finished warm-up.",
            ),
            (
                is_rough,
                "These are few samples, so the shares are rough: look at more with --cases.",
            ),
            (
                self.found.share_with_pair(best) < ENOUGH_PAIRS,
                "MAPO will have few pairs here: samples without one are trained with nnU-Net's own "
                f"loss alone. A {'longer' if needs_more else 'shorter'} warm-up gives more.",
            ),
            (
                best.rates[-1] == self.rates[-1],
                "Even the largest rate leaves useful candidates: look at higher ones with --rates.",
            ),
        ]
        return [wrap(f"Note: {note}") for holds, note in notes if holds]
