"""Every setting of MAPO, with its default, its valid range and the source of the default.

"eq." and "paper" refer to arXiv:2512.15009 throughout the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nnunetv2_mapo.method.candidates import (
    LIGHT_RATES,
    NOISE_SIGMAS,
    RATES_2D,
    RATES_3D,
    THRESHOLDS,
    Candidates,
)
from nnunetv2_mapo.method.field_checks import (
    check_bool,
    check_choice,
    check_count,
    check_number,
    check_patterns,
    check_rates,
    check_sigmas,
    check_thresholds,
)
from nnunetv2_mapo.method.schedule import Schedule

LIKELIHOODS = ("voxel", "disagreement", "image")
GRANULARITIES = ("element", "channel")
STARTS = ("best", "last")
SAMPLERS = ("dropout", "threshold", "noise")
LOSS_TYPES = ("sigmoid", "ipo", "hinge", "robust")
REFERENCE_UPDATES = ("never", "round", "average")
SELECTION_UNITS = ("case", "slice", "window")
PREFERENCE_DROPOUTS = ("without pair", "off", "same masks")
RATES = ("auto", "fixed")
PAIRS = ("region", "case")
# What version 0.1 did where it had no setting: its records and checkpoints mean this.
_BEFORE: dict[str, Any] = {
    "rates_3d": RATES_3D,
    "rates": "fixed",
    "pair": "case",
    "agree": False,
    "likelihood": "disagreement",
    "warmup_dropout": True,
    "preference_dropout": "asymmetric",  # of the policy only: not to be had any more
    "tile_step_size": 1.0,
}


@dataclass(frozen=True)
class MAPOConfig:
    """Settings of one MAPO training; a trainer class holds one as its attribute `mapo`.

    Nothing is checked when the object is made, because nnU-Net imports every trainer module while
    it looks for any trainer. `validate` is called when a trainer is made.

    Attributes:
        rates_2d: Dropout rates of training in 2D configurations, of which each sample of a batch
            draws one, first 0, increasing, < 1. Source: paper.
        rates_3d: The same in 3D configurations. Paper: 0 to 0.3. Default measured: dropout that
            strong costs more than it gains in 3D.
        rates: Dropout rates of the candidates: `"fixed"`, those of training (paper), or `"auto"`:
            as many, spread up to the largest one that the network stands, found at the start of
            each round.
        rates_dice_fall: What it stands: share of its median Dice that is lost at that rate, in
            (0, 1).
        granularity: What dropout drops: single `"element"`s of a feature map (`nn.Dropout`; paper)
            or whole `"channel"`s.
        sampler: Where the candidates come from: `"dropout"` (paper), a `"threshold"` on the
            foreground probability, or Gaussian `"noise"` on the image (paper, table 4). Dropout in
            training is the same with each.
        thresholds: Thresholds of the candidates of the sampler `"threshold"`, first 0.5 (the plain
            prediction), each in (0, 1). Source: paper.
        noise_sigmas: Standard deviations of the candidates of the sampler `"noise"`, in units of
            the preprocessed intensities, first 0, increasing. Source: paper.
        selection_unit_2d: What has a preference pair of its own in 2D configurations: a `"case"`, a
            `"slice"` (paper) or a sliding `"window"`.
        selection_unit_3d: The same in 3D configurations; a case (paper).
        tile_step_size: Distance of mining's sliding windows as a share of the patch, in (0, 1]: 1
            is fastest. Default measured: as in nnU-Net's prediction, where it is 0.01 of Dice away.
        pair: What a preference pair is: two candidates of a sample (`"case"`; paper), or the parts
            in which candidates differ from the plain prediction, each preferred or not by its own
            effect on the sample's Dice (`"region"`).
        agree: Keep only the voxels in which chosen is right (Mask-DPO, arXiv:2503.02846); paper:
            all.
        tau: Dice difference that makes a preference, in (0, 1]: of `pair="case"` the least gap
            between chosen and rejected (eq. 4; paper: 0.3); of `pair="region"` the effect of a part
            from which it has the full weight 1, below which the weight is proportional.
        tau_max: Largest gap of `pair="case"`, in (0, 1], not below `tau`; 1: no limit (paper).
        tau_quantile: Takes the place of `tau` if given, in [0, 1): τ becomes this quantile of the
            Dice gaps of the round's samples, so that the share 1 - `tau_quantile` of them has a
            pair, however good the network is. Samples without foreground and those whose
            candidates all have the same Dice do not count.
        beta: Sensitivity to preference differences, > 0 (eq. 2). Paper: 0.1. Default measured
            together with `likelihood="disagreement"`.
        lambda_supervised: Weight λ of nnU-Net's own loss in the preference stage, >= 0 (eq. 7).
            Paper: 0.5. Default measured.
        likelihood: What the loss of a pair is of: the log-likelihood averaged over every voxel of
            the patch (`"image"`, eq. 6) or over those in which chosen and rejected differ
            (`"disagreement"`); or each of these voxels on its own (`"voxel"`).
        kappa: Pull of a voxel of `likelihood="voxel"` where policy and reference agree, as a
            multiple of the most that cross-entropy can pull, > 0.
        loss_type: Loss of a pair by TRL's name: `"sigmoid"` (DPO, eq. 2; paper), `"ipo"`,
            `"hinge"` or `"robust"`.
        label_smoothing: Probability ε that a pair is the wrong way round, in [0, 0.5), for
            `"sigmoid"` (conservative DPO) and `"robust"`, which needs it above 0.
        reference_update: When the reference follows the policy: `"never"` (paper), at the start of
            each `"round"`, or as its moving `"average"` (TR-DPO, arXiv:2404.09656).
        reference_decay: Share of the moving average that a step keeps, in (0, 1), TR-DPO's 1 - α.
            Not tuned.
        warmup_dropout: Whether the warm-up trains with dropout. Paper: yes.
        preference_dropout: Dropout of training in the preference stage. Policy and reference are
            always compared under the same conditions: `"off"`: none (paper); `"without pair"`:
            samples whose patch has a pair have none, the others that of the warm-up; `"same
            masks"`: that of the warm-up, and the reference drops the same elements.
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
        dropout_include: Names of modules whose output is dropped as well, with wildcards, such as
            `("blocks.*.mixer",)`; see `find_dropout_sites`.
        dropout_exclude: Names of modules in which nothing is dropped, with wildcards; stronger than
            `dropout_include`.
    """

    rates_2d: tuple[float, ...] = RATES_2D
    rates_3d: tuple[float, ...] = LIGHT_RATES
    rates: str = "auto"
    rates_dice_fall: float = 0.1
    granularity: str = "element"
    sampler: str = "dropout"
    thresholds: tuple[float, ...] = THRESHOLDS
    noise_sigmas: tuple[float, ...] = NOISE_SIGMAS
    selection_unit_2d: str = "slice"
    selection_unit_3d: str = "case"
    tile_step_size: float = 0.5
    pair: str = "region"
    agree: bool = True
    tau: float = 0.05
    tau_max: float = 1.0
    tau_quantile: float | None = None
    beta: float = 1.0
    lambda_supervised: float = 1.0
    likelihood: str = "voxel"
    kappa: float = 0.5
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    reference_update: str = "never"
    reference_decay: float = 0.999
    warmup_dropout: bool = True
    preference_dropout: str = "without pair"
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
    dropout_include: tuple[str, ...] = ()
    dropout_exclude: tuple[str, ...] = ()

    def validate(self) -> None:
        """Check every field.

        Raises:
            ValueError: One line for each invalid field: its value, what is valid.
        """
        problems = [
            *self._check_mining(),
            *self._check_preferences(),
            *self._check_schedule(),
            *self._check_optimisation(),
        ]
        if problems:
            message = "Invalid MAPOConfig:\n  " + "\n  ".join(problems)
            raise ValueError(message)

    def _check_mining(self) -> list[str]:
        problems = [
            *check_rates("rates_2d", self.rates_2d),
            *check_rates("rates_3d", self.rates_3d),
            *check_choice("rates", self.rates, RATES),
            *check_number(
                "rates_dice_fall", self.rates_dice_fall, "in (0, 1)", lambda v: 0 < v < 1
            ),
            *check_choice("granularity", self.granularity, GRANULARITIES),
            *check_choice("sampler", self.sampler, SAMPLERS),
            *check_thresholds("thresholds", self.thresholds),
            *check_sigmas("noise_sigmas", self.noise_sigmas),
            *check_choice("selection_unit_2d", self.selection_unit_2d, SELECTION_UNITS),
            *check_choice("selection_unit_3d", self.selection_unit_3d, SELECTION_UNITS),
            *check_number("tile_step_size", self.tile_step_size, "in (0, 1]", lambda v: 0 < v <= 1),
            *self._check_pairs(),
            *check_patterns("dropout_include", self.dropout_include),
            *check_patterns("dropout_exclude", self.dropout_exclude),
            *check_count("seed", self.seed, 0),
        ]
        return [
            *problems,
            *self._check_used("thresholds", "sampler", "threshold"),
            *self._check_used("noise_sigmas", "sampler", "noise"),
            *self._check_used("rates_dice_fall", "rates", "auto"),
        ]

    def _check_pairs(self) -> list[str]:
        problems = [
            *check_choice("pair", self.pair, PAIRS),
            *check_bool("agree", self.agree),
            *check_number("tau", self.tau, "in (0, 1]", lambda v: 0 < v <= 1),
            *check_number("tau_max", self.tau_max, "in (0, 1]", lambda v: 0 < v <= 1),
        ]
        if self.tau_quantile is not None:
            problems += check_number(
                "tau_quantile", self.tau_quantile, "in [0, 1)", lambda v: 0 <= v < 1
            )
        if not problems and self.tau_max < self.tau:
            problems.append(f"tau_max={self.tau_max!r} is not valid: tau={self.tau!r} is above it.")
        return [
            *problems,
            *self._check_used("tau_max", "pair", "case"),
            *self._check_used("tau_quantile", "pair", "case"),
        ]

    def _check_used(self, name: str, switch: str, needed: str) -> list[str]:
        """Refuse a setting that was given but that another one leaves unused."""
        default = type(self).__dataclass_fields__[name].default
        if getattr(self, name) == default or getattr(self, switch) == needed:
            return []
        return [f"{name}={getattr(self, name)!r} is not valid: it needs {switch}={needed!r}."]

    def _check_preferences(self) -> list[str]:
        problems = [
            *check_number("beta", self.beta, "> 0", lambda v: v > 0),
            *check_number("lambda_supervised", self.lambda_supervised, ">= 0", lambda v: v >= 0),
            *check_choice("likelihood", self.likelihood, LIKELIHOODS),
            *check_number("kappa", self.kappa, "> 0", lambda v: v > 0),
            *self._check_used("kappa", "likelihood", "voxel"),
            *check_choice("loss_type", self.loss_type, LOSS_TYPES),
            *check_choice("reference_update", self.reference_update, REFERENCE_UPDATES),
            *check_number(
                "reference_decay", self.reference_decay, "in (0, 1)", lambda v: 0 < v < 1
            ),
            *self._check_used("reference_decay", "reference_update", "average"),
            *check_bool("warmup_dropout", self.warmup_dropout),
            *check_choice("preference_dropout", self.preference_dropout, PREFERENCE_DROPOUTS),
            *check_choice("start_from", self.start_from, STARTS),
        ]
        smoothing = check_number(
            "label_smoothing", self.label_smoothing, "in [0, 0.5)", lambda v: 0 <= v < 0.5
        )
        if not smoothing and self.label_smoothing and self.loss_type in ("ipo", "hinge"):
            smoothing.append(
                f"label_smoothing={self.label_smoothing!r} is not valid: it is of loss_type "
                f"'sigmoid' and 'robust', which {self.loss_type!r} is not."
            )
        if not smoothing and not self.label_smoothing and self.loss_type == "robust":
            smoothing.append(
                "label_smoothing=0 is not valid: loss_type 'robust' needs a number in (0, 0.5)."
            )
        return [*problems, *smoothing]

    def _check_schedule(self) -> list[str]:
        problems = check_count("num_rounds", self.num_rounds, 0)
        for name in ("warmup_fraction_2d", "warmup_fraction_3d"):
            problems += check_number(name, getattr(self, name), "in (0, 1)", lambda v: 0 < v < 1)
        for name, least in (("warmup_epochs", 1), ("num_epochs_2d", 2), ("num_epochs_3d", 2)):
            if getattr(self, name) is not None:
                problems += check_count(name, getattr(self, name), least)
        return problems

    def _check_optimisation(self) -> list[str]:
        problems = check_bool("fine_tune", self.fine_tune)
        for name in ("num_epochs_factor", "learning_rate_factor"):
            problems += check_number(name, getattr(self, name), "> 0", lambda v: v > 0)
        if self.adam_learning_rate is not None:
            problems += check_number(
                "adam_learning_rate", self.adam_learning_rate, "> 0", lambda v: v > 0
            )
            if self.learning_rate_factor != 1:
                problems.append(
                    f"learning_rate_factor={self.learning_rate_factor!r} is not valid: it is of "
                    "the base trainer's learning rate, which adam_learning_rate replaces."
                )
        return problems

    def training_rates(self, num_dimensions: int) -> tuple[float, ...]:
        """Dropout rates of training in a 2D or 3D configuration."""
        return self.rates_2d if num_dimensions == 2 else self.rates_3d

    def candidates(self, num_dimensions: int) -> Candidates:
        """What the sampler's candidates differ in; with `rates="auto"` before any round."""
        if self.sampler == "threshold":
            return Candidates("threshold", "thresholds", self.thresholds)
        if self.sampler == "noise":
            return Candidates("noise σ", "noise_sigmas", self.noise_sigmas)
        values = self.training_rates(num_dimensions)
        return Candidates("dropout rate", f"rates_{num_dimensions}d", values)

    def has_dropout(self, *, is_warmup: bool) -> bool:
        """Whether a stage trains with dropout."""
        return self.warmup_dropout if is_warmup else self.preference_dropout != "off"

    @property
    def finds_rates(self) -> bool:
        """Whether the candidates' rates are found anew in each round."""
        return self.sampler == "dropout" and self.rates == "auto"

    def selection_unit(self, num_dimensions: int) -> str:
        """Selection unit of a 2D or 3D configuration."""
        return self.selection_unit_2d if num_dimensions == 2 else self.selection_unit_3d

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

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> MAPOConfig:
        """Undo `to_dict`, of this or an earlier version; settings of a later one do not count."""
        settings = _BEFORE | dict(settings)
        if isinstance(settings["preference_dropout"], bool):  # before there were choices
            had_dropout = settings["preference_dropout"]
            settings["preference_dropout"] = _BEFORE["preference_dropout"] if had_dropout else "off"
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
            if name in known
        }
        return cls(**values)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Fields in which `other`, a `to_dict` of an earlier training, differs, one line each."""
        mine, theirs = self.to_dict(), self.from_dict(other).to_dict()
        return [
            f"{name}: {theirs[name]} then, {value} now"
            for name, value in mine.items()
            if theirs[name] != value
        ]
