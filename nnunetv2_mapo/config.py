"""Every setting of MAPO, with its default, its valid range and the source of the default."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from nnunetv2_mapo.schedule import Schedule

LIKELIHOODS = ("disagreement", "image")
GRANULARITIES = ("element", "channel")
STARTS = ("best", "last")

# The paper's candidate rates; "eq." and "paper" refer to arXiv:2512.15009 throughout the package.
RATES_2D = tuple(round(0.005 * step, 3) for step in range(11))
RATES_3D = tuple(round(0.05 * step, 2) for step in range(7))


@dataclass(frozen=True)
class MAPOConfig:
    """Settings of one MAPO training; a trainer class holds one as its attribute `mapo`.

    Nothing is checked when the object is made, because nnU-Net imports every trainer module while
    it looks for any trainer. `validate` is called when a trainer is made.

    Attributes:
        rates_2d: Dropout rates of the candidates in 2D configurations, one candidate each, first 0
            (the plain prediction), increasing, < 1. Source: paper.
        rates_3d: The same in 3D configurations. Source: paper.
        granularity: What dropout drops: single `"element"`s of a feature map (`nn.Dropout`; paper)
            or whole `"channel"`s.
        tau: Least Dice gap between chosen and rejected, in (0, 1] (eq. 4). Paper: 0.3. Default
            measured: 0.1 beat the dropout control in four of four runs on two data sets.
        beta: Sensitivity to preference differences, > 0 (eq. 2). Paper: 0.1. Default measured
            together with `likelihood="disagreement"`.
        lambda_supervised: Weight λ of nnU-Net's own loss in the preference stage, >= 0 (eq. 7).
            Paper: 0.5. Default measured.
        likelihood: What the log-likelihood is averaged over: `"image"`, every voxel of the patch
            (eq. 6), or `"disagreement"`, the voxels in which chosen and rejected differ. Default
            measured: with `"image"` the loss stays at ln 2.
        preference_dropout: Keep the warm-up's dropout on in the preference stage. Paper: no.
            Default measured: dropout contributes more than any other setting.
        warmup_fraction_2d: Share of all epochs that is warm-up in 2D configurations, in (0, 1).
            Paper: 100 of 300.
        warmup_fraction_3d: The same in 3D configurations. Paper: 500 of 1300.
        warmup_epochs: Warm-up in epochs, >= 1; takes the place of the fractions if given.
        num_rounds: Rounds of mining and preference optimisation, >= 0. 0 is a warm-up for all
            epochs: MAPO's dropout without preferences, the control. Paper: 4.
        start_from: Warm-up weights that the preference stage starts from and that become the
            reference: `"best"` by nnU-Net's moving average of the pseudo Dice (paper) or `"last"`.
        seed: Seed of mining, >= 0; the same seed gives the same pairs.
        num_epochs_2d: Length of the training in 2D configurations, >= 2; None keeps the base
            trainer's.
        num_epochs_3d: The same in 3D configurations.
        adam_learning_rate: Fixed learning rate, > 0, of the paper's optimisers (Adam in 2D, AdamW
            in 3D); None keeps the base trainer's optimiser and schedule.
        fine_tune: Start from a finished checkpoint, the base trainer's own of the same fold or the
            one that `nnUNet_mapo_checkpoint` names, instead of random weights.
        num_epochs_factor: Length of the training as a multiple of the base trainer's number of
            epochs, > 0, at least 2 epochs; `num_epochs_2d` and `num_epochs_3d` come first.
        learning_rate_factor: Factor, > 0, on the base trainer's initial learning rate.
    """

    rates_2d: tuple[float, ...] = RATES_2D
    rates_3d: tuple[float, ...] = RATES_3D
    granularity: str = "element"
    tau: float = 0.1
    beta: float = 1.0
    lambda_supervised: float = 1.0
    likelihood: str = "disagreement"
    preference_dropout: bool = True
    warmup_fraction_2d: float = 1 / 3
    warmup_fraction_3d: float = 5 / 13
    warmup_epochs: int | None = None
    num_rounds: int = 4
    start_from: str = "best"
    seed: int = 0
    num_epochs_2d: int | None = None
    num_epochs_3d: int | None = None
    adam_learning_rate: float | None = None
    fine_tune: bool = False
    num_epochs_factor: float = 1.0
    learning_rate_factor: float = 1.0

    def validate(self) -> None:
        """Check every field.

        Raises:
            ValueError: One line for each invalid field: its value, what is valid.
        """
        problems = [
            *check_rates("rates_2d", self.rates_2d),
            *check_rates("rates_3d", self.rates_3d),
            *_check_choice("granularity", self.granularity, GRANULARITIES),
            *_check_number("tau", self.tau, "in (0, 1]", lambda v: 0 < v <= 1),
            *_check_number("beta", self.beta, "> 0", lambda v: v > 0),
            *_check_number("lambda_supervised", self.lambda_supervised, ">= 0", lambda v: v >= 0),
            *_check_choice("likelihood", self.likelihood, LIKELIHOODS),
            *_check_bool("preference_dropout", self.preference_dropout),
            *_check_bool("fine_tune", self.fine_tune),
            *_check_choice("start_from", self.start_from, STARTS),
            *_check_count("num_rounds", self.num_rounds, 0),
            *_check_count("seed", self.seed, 0),
        ]
        for name in ("warmup_fraction_2d", "warmup_fraction_3d"):
            problems += _check_number(name, getattr(self, name), "in (0, 1)", lambda v: 0 < v < 1)
        for name, least in (("warmup_epochs", 1), ("num_epochs_2d", 2), ("num_epochs_3d", 2)):
            if getattr(self, name) is not None:
                problems += _check_count(name, getattr(self, name), least)
        for name in ("num_epochs_factor", "learning_rate_factor"):
            problems += _check_number(name, getattr(self, name), "> 0", lambda v: v > 0)
        if self.adam_learning_rate is not None:
            problems += _check_number(
                "adam_learning_rate", self.adam_learning_rate, "> 0", lambda v: v > 0
            )
            if self.learning_rate_factor != 1:
                problems.append(
                    f"learning_rate_factor={self.learning_rate_factor!r} is not valid: it is of "
                    "the base trainer's learning rate, which adam_learning_rate replaces."
                )
        if problems:
            message = "Invalid MAPOConfig:\n  " + "\n  ".join(problems)
            raise ValueError(message)

    def rates(self, num_dimensions: int) -> tuple[float, ...]:
        """Candidate rates of a 2D or 3D configuration."""
        return self.rates_2d if num_dimensions == 2 else self.rates_3d

    def num_epochs(self, num_dimensions: int, base: int) -> int:
        """Length of the training in epochs, where the base trainer has `base` epochs."""
        explicit = self.num_epochs_2d if num_dimensions == 2 else self.num_epochs_3d
        if explicit is None and self.num_epochs_factor != 1:
            return max(2, round(self.num_epochs_factor * base))
        return explicit or base

    def schedule(self, num_epochs: int, num_dimensions: int) -> Schedule:
        """Schedule of a training of `num_epochs` epochs of a 2D or 3D configuration.

        Raises:
            ValueError: `warmup_epochs` leaves no epoch for the rounds.
        """
        if self.num_rounds and (self.warmup_epochs or 0) >= num_epochs:
            message = (
                f"warmup_epochs={self.warmup_epochs} leaves no epoch for preferences in a training "
                f"of {num_epochs} epochs: less is needed, or None for the usual share."
            )
            raise ValueError(message)
        fraction = self.warmup_fraction_2d if num_dimensions == 2 else self.warmup_fraction_3d
        warmup_epochs = self.warmup_epochs or round(fraction * num_epochs)
        return Schedule(num_epochs, warmup_epochs, self.num_rounds)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; tuples become lists."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Fields in which `other`, a `to_dict` of an earlier training, differs, one line each."""
        mine = self.to_dict()
        return [
            f"{field.name}: {other[field.name]} then, {mine[field.name]} now"
            for field in fields(self)
            if field.name in other and other[field.name] != mine[field.name]
        ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_number(name: str, value: object, valid: str, is_valid: Any) -> list[str]:
    if _is_number(value) and is_valid(value):
        return []
    return [f"{name}={value!r} is not valid: a number {valid} is needed."]


def _check_count(name: str, value: object, least: int) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return []
    return [f"{name}={value!r} is not valid: an integer >= {least} is needed."]


def _check_bool(name: str, value: object) -> list[str]:
    return [] if isinstance(value, bool) else [f"{name}={value!r} is not valid: True or False."]


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> list[str]:
    if value in choices:
        return []
    return [f"{name}={value!r} is not valid: choose one of {list(choices)}."]


def check_rates(name: str, rates: object) -> list[str]:
    """Say what is wrong with candidate rates; empty where nothing is."""
    valid = "increasing rates from 0 to below 1 are needed, such as (0.0, 0.1, 0.2)"
    if (
        isinstance(rates, (tuple, list))
        and len(rates) >= 2
        and all(_is_number(rate) and 0 <= rate < 1 for rate in rates)
        and rates[0] == 0
        and all(low < high for low, high in pairwise(rates))
    ):
        return []
    return [f"{name}={rates!r} is not valid: {valid}."]
