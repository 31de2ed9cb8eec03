"""Every setting of MAPO, with its default, its valid range and the source of the default.

"eq." and "paper" refer to arXiv:2512.15009 throughout the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from nnunetv2_mapo.method.schedule import Schedule
from nnunetv2_mapo.method.valid import (
    ABOVE_0,
    BELOW_1,
    BETWEEN_0_AND_1,
    BOOL,
    CASES,
    CUTS,
    METRIC,
    MODULES,
    RATES,
    SIGMAS,
    UNIT,
    UNLABELLED,
    UP_TO_1,
    Valid,
    choice,
    integer,
    number,
)

RATES_2D = tuple(round(0.005 * step, 3) for step in range(11))
RATES_3D = tuple(round(0.05 * step, 2) for step in range(7))
LIGHT_RATES = tuple(round(0.01 * step, 2) for step in range(7))  # not the paper's
THRESHOLDS = (0.5, *(round(0.375 + 0.025 * step, 3) for step in range(11) if step != 5))
NOISE_SIGMAS = tuple(round(0.005 * step, 3) for step in range(11))
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
    "reference": "network",
}
# What compares the policy with a second network in each step.
_OF_A_NETWORK = (
    ("reference_update", "average"),
    ("preference_dropout", "same masks"),
    ("unlabelled", "preferences"),
)


def _setting(default: Any, valid: Valid, needs: tuple[str, str] | None = None) -> Any:
    """Field with what it may be, and another field and the value without which it has no effect."""
    return field(default=default, metadata={"valid": valid, "needs": needs})


class Candidates(NamedTuple):
    """What candidates differ in: label in words, field of `MAPOConfig`, value of each candidate.

    The first value is that of the plain prediction.
    """

    label: str
    setting: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class MAPOConfig:
    """Settings of one MAPO training; a trainer class holds one as its attribute `mapo`.

    Nothing is checked when the object is made, because nnU-Net imports every trainer module while
    it looks for any trainer. `validate` is called when a trainer is made.

    What is valid stands at each field; docs/reference/configuration.md says more of each, and where
    "measured" defaults were measured. `_2d` and `_3d` are of 2D and 3D configurations.

    Attributes:
        rates_2d, rates_3d: Dropout rates of training, one of which each sample draws. Paper, but
            in 3D 0 to 0.3, which is measured to cost more than it gains.
        rates: Dropout rates of the candidates: `"fixed"`, those of training (paper), or `"auto"`:
            as many, spread up to the largest that the network stands, found anew in each round.
        rates_dice_fall: What it stands: share of its median Dice that is lost at that rate.
        granularity: What dropout drops: single `"element"`s (`nn.Dropout`; paper) or `"channel"`s.
        sampler: Where candidates come from: `"dropout"` (paper), a `"threshold"` on the foreground
            probability, or Gaussian `"noise"` on the image (paper, table 4).
        thresholds: Of the candidates of the sampler `"threshold"`. Paper.
        noise_sigmas: Standard deviations of the candidates of the sampler `"noise"`, in units of
            the preprocessed intensities. Paper.
        selection_unit_2d, selection_unit_3d: What has a preference pair of its own: a `"case"`
            (paper in 3D), a `"slice"` (paper in 2D) or a sliding `"window"`.
        tile_step_size: Distance of mining's windows as a share of the patch. Default measured.
        pair: What a pair is: two candidates of a sample (`"case"`; paper), or the parts in which
            candidates differ from the plain prediction, each by its own effect (`"region"`).
        metric: What candidates and parts are ranked by: a name of `METRICS` (paper: Dice), a user's
            own `"package.module:function"`, or weights of several of these. See `method.ranking`.
        tolerance_mm: Distance up to which NSD takes a surface for right, in mm.
        part_weight: What pulls alike, at the same effect: each `"voxel"`, or each `"part"`, however
            small, see `region_pairs.even_out`.
        agree: Keep only voxels in which chosen is right (Mask-DPO, arXiv:2503.02846). Paper: all.
        tau: Difference of the metric that makes a preference: of `pair="case"` the least gap
            between chosen and rejected (eq. 4; paper: 0.3); of `pair="region"` the effect of a part
            from which it has the full weight 1, below which the weight is proportional.
        tau_max: Largest gap of `pair="case"`, not below `tau`; 1: no limit (paper).
        tau_quantile: Takes the place of `tau` if given: quantile of the gaps of the round's
            samples, so that the share 1 - `tau_quantile` of them has a pair.
        beta: Sensitivity to preference differences (eq. 2). Paper: 0.1. Default measured.
        lambda_supervised: Weight λ of nnU-Net's own loss (eq. 7). Paper: 0.5. Default measured.
        likelihood: What the loss of a pair is of: the log-likelihood averaged over every voxel of
            the patch (`"image"`, eq. 6) or over those in which chosen and rejected differ
            (`"disagreement"`); or each of these voxels on its own (`"voxel"`).
        kappa: Pull of a voxel where policy and reference agree, see `loss.voxel_loss`.
        loss_type: Loss of a pair by TRL's name, see `loss.preference_loss`. Paper: `"sigmoid"`.
        label_smoothing: Probability ε that a pair is the wrong way round.
        reference: Where the reference's margins come from: `"cached"`, measured when a round is
            mined and carried through the augmentation; the `"network"`, once more in each step
            (paper); or `"none"`, margins of 0, as if it preferred nothing. Default measured.
        reference_update: When the reference follows the policy: `"never"` (paper), at the start of
            each `"round"`, or as its moving `"average"` (TR-DPO, arXiv:2404.09656).
        reference_decay: Share of the moving average that a step keeps, TR-DPO's 1 - α. Not tuned.
        warmup_dropout: Whether the warm-up trains with dropout. Paper: yes. Default measured: from
            scratch it costs more Dice than it gives.
        preference_dropout: Dropout of training in the preference stage, the same conditions for
            policy and reference: `"off"` (paper); that of the warm-up, but in samples `"without
            pair"` alone; or that of the warm-up with the `"same masks"` for both.
        warmup_fraction_2d, warmup_fraction_3d: Share of all epochs that is warm-up. Paper.
        warmup_epochs: Warm-up in epochs; takes the place of the fractions if given.
        num_rounds: Rounds of mining and preference optimisation; 0: warm-up alone. Paper: 4.
        cases_per_round: Training cases that a round mines, as a number or a share of them, drawn
            anew for each round; the others are trained on with nnU-Net's own loss. None: all
            (paper).
        keep_rounds: Keep the pairs of earlier rounds on the disk.
        start_from: Warm-up weights to go on from: the `"best"` by pseudo Dice (paper) or `"last"`.
        best_by: What nnU-Net's `checkpoint_best.pth`, and so the start of the preference stage, is
            the best by: nnU-Net's `"pseudo Dice"` (paper), or the `"metric"`.
        seed: Seed of mining; the same seed gives the same pairs.
        num_epochs_2d, num_epochs_3d: Length of the training; None keeps the base trainer's.
        adam_learning_rate: Fixed learning rate of the paper's optimisers (Adam in 2D, AdamW in
            3D); None keeps the base trainer's optimiser and schedule.
        fine_tune: Start from a finished checkpoint instead of random weights.
        num_epochs_factor: Length of the training as a multiple of the base trainer's.
        learning_rate_factor: Factor on the base trainer's initial learning rate.
        unlabelled: What the preference stage makes of the images in a folder of experts' choices:
            nothing (`"off"`), DPO on the `"preferences"`, nnU-Net's loss with what was `"chosen"`
            as the label, or, without the expert, with the plain prediction as `"pseudo-label"`. If
            anything, the training cases have nnU-Net's loss alone.
        unlabelled_share: Share of such images in a batch, in whole patches.
        dropout_include: Names of modules whose output is dropped as well, see `find_dropout_sites`.
        dropout_exclude: The same of modules in which nothing is dropped; stronger.
    """

    rates_2d: tuple[float, ...] = _setting(RATES_2D, RATES)
    rates_3d: tuple[float, ...] = _setting(LIGHT_RATES, RATES)
    rates: str = _setting("auto", choice("auto", "fixed"))
    rates_dice_fall: float = _setting(0.1, BETWEEN_0_AND_1, ("rates", "auto"))
    granularity: str = _setting("element", choice("element", "channel"))
    sampler: str = _setting("dropout", choice("dropout", "threshold", "noise"))
    thresholds: tuple[float, ...] = _setting(THRESHOLDS, CUTS, ("sampler", "threshold"))
    noise_sigmas: tuple[float, ...] = _setting(NOISE_SIGMAS, SIGMAS, ("sampler", "noise"))
    selection_unit_2d: str = _setting("slice", UNIT)
    selection_unit_3d: str = _setting("case", UNIT)
    tile_step_size: float = _setting(0.5, UP_TO_1)
    pair: str = _setting("region", choice("region", "case"))
    metric: str | Mapping[str, float] = _setting("dice", METRIC)
    tolerance_mm: float = _setting(1.0, number(">= 0", lambda value: value >= 0))
    part_weight: str = _setting("voxel", choice("voxel", "part"), ("pair", "region"))
    agree: bool = _setting(True, BOOL)
    tau: float = _setting(0.05, UP_TO_1)
    tau_max: float = _setting(1.0, UP_TO_1, ("pair", "case"))
    tau_quantile: float | None = _setting(None, BELOW_1, ("pair", "case"))
    beta: float = _setting(1.0, ABOVE_0)
    lambda_supervised: float = _setting(1.0, number(">= 0", lambda value: value >= 0))
    likelihood: str = _setting("voxel", choice("voxel", "disagreement", "image"))
    kappa: float = _setting(0.5, ABOVE_0, ("likelihood", "voxel"))
    loss_type: str = _setting("sigmoid", choice("sigmoid", "ipo", "hinge", "robust"))
    label_smoothing: float = _setting(0.0, number("in [0, 0.5)", lambda value: 0 <= value < 0.5))
    reference: str = _setting("cached", choice("cached", "network", "none"))
    reference_update: str = _setting("never", choice("never", "round", "average"))
    reference_decay: float = _setting(0.999, BETWEEN_0_AND_1, ("reference_update", "average"))
    warmup_dropout: bool = _setting(False, BOOL)
    preference_dropout: str = _setting("off", choice("off", "without pair", "same masks"))
    warmup_fraction_2d: float = _setting(1 / 3, BETWEEN_0_AND_1)
    warmup_fraction_3d: float = _setting(5 / 13, BETWEEN_0_AND_1)
    warmup_epochs: int | None = _setting(None, integer(1))
    num_rounds: int = _setting(4, integer(0))
    cases_per_round: int | float | None = _setting(None, CASES)
    keep_rounds: bool = _setting(False, BOOL)
    start_from: str = _setting("best", choice("best", "last"))
    best_by: str = _setting("pseudo Dice", choice("pseudo Dice", "metric"))
    seed: int = _setting(0, integer(0))
    num_epochs_2d: int | None = _setting(None, integer(2))
    num_epochs_3d: int | None = _setting(None, integer(2))
    adam_learning_rate: float | None = _setting(None, ABOVE_0)
    fine_tune: bool = _setting(False, BOOL)
    num_epochs_factor: float = _setting(1.0, ABOVE_0)
    learning_rate_factor: float = _setting(1.0, ABOVE_0)
    unlabelled: str = _setting("off", choice("off", *UNLABELLED))
    unlabelled_share: float = _setting(0.5, BETWEEN_0_AND_1)
    dropout_include: tuple[str, ...] = _setting((), MODULES)
    dropout_exclude: tuple[str, ...] = _setting((), MODULES)

    def validate(self) -> None:
        """Check every field, then what the fields say together.

        Raises:
            ValueError: One line for each invalid field: its value, what is valid.
        """
        problems = []
        for each in fields(self):
            value, needs = getattr(self, each.name), each.metadata["needs"]
            if value is not None or each.default is not None:
                problems += each.metadata["valid"].check(each.name, value)
            if needs and value != each.default and getattr(self, needs[0]) != needs[1]:
                needed = f"it needs {needs[0]}={needs[1]!r}"
                problems.append(f"{each.name}={value!r} is not valid: {needed}.")
        if problems := problems or self._find_contradictions():
            raise ValueError("\n  ".join(["Invalid MAPOConfig:", *problems]))

    def _find_contradictions(self) -> list[str]:
        smoothing, problems = self.label_smoothing, []
        if self.tau_max < self.tau:
            problems += [f"tau_max={self.tau_max!r} is not valid: tau={self.tau!r} is above it."]
        if smoothing and self.loss_type in ("ipo", "hinge"):
            problems.append(
                f"label_smoothing={smoothing!r} is not valid: it is of loss_type 'sigmoid' and "
                f"'robust', which {self.loss_type!r} is not."
            )
        if not smoothing and self.loss_type == "robust":
            problems.append(
                "label_smoothing=0 is not valid: loss_type 'robust' needs a number in (0, 0.5)."
            )
        if self.metric != "dice" and self.selection_unit_2d == "case":
            problems.append(
                f"metric={self.metric!r} is not valid with selection_unit_2d='case': preprocessed "
                "slices have no common distance. Choose 'slice' or 'window'."
            )
        if self.reference != "network":
            needing = [
                f"{name}={getattr(self, name)!r} is not valid: it needs reference='network'."
                for name, value in _OF_A_NETWORK
                if getattr(self, name) == value
            ]
            problems += needing
        without_nsd = "nsd" not in ([self.metric] if isinstance(self.metric, str) else self.metric)
        for name, does_nothing, needed in (
            ("tolerance_mm", without_nsd, "metric='nsd', or 'nsd' among its weights"),
            ("unlabelled_share", self.unlabelled == "off", "unlabelled='preferences', or labels"),
        ):
            value = getattr(self, name)
            if does_nothing and value != getattr(MAPOConfig, name):
                problems.append(f"{name}={value!r} is not valid: it needs {needed}.")
        if self.reference == "none" and self.reference_update != "never":
            problems.append(
                f"reference_update={self.reference_update!r} is not valid: with reference='none' "
                "there is nothing to update."
            )
        if self.adam_learning_rate is not None and self.learning_rate_factor != 1:
            problems.append(
                f"learning_rate_factor={self.learning_rate_factor!r} is not valid: it is of the "
                "base trainer's learning rate, which adam_learning_rate replaces."
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
    def trains_with_dropout(self) -> bool:
        """Whether any stage does."""
        has_rounds = self.num_rounds > 0
        return self.warmup_dropout or (has_rounds and self.has_dropout(is_warmup=False))

    @property
    def ranked_by(self) -> str:
        """The metric that ranks, in words."""
        if isinstance(self.metric, str):
            return "Dice" if self.metric == "dice" else self.metric
        return " + ".join(f"{weight:g} {name}" for name, weight in self.metric.items())

    @property
    def learns_unlabelled(self) -> bool:
        """Whether the preference stage is about images that nobody has segmented."""
        return self.unlabelled != "off" and self.num_rounds > 0

    @property
    def has_preferences(self) -> bool:
        """Whether the preference stage is about preferences, not about other labels."""
        return self.unlabelled in ("off", "preferences")

    @property
    def needs_network(self) -> bool:
        """Whether the reference is a second network in the preference stage."""
        return self.has_preferences and self.reference == "network"

    @property
    def num_channels(self) -> int:
        """Channels of a mined case besides the segmentation, see `store.stack_preferences`."""
        return 4 if self.reference == "cached" else 3

    def num_unlabelled(self, batch_size: int) -> int:
        """Patches of unlabelled images in a batch; at least one, and one labelled besides."""
        return max(1, min(round(self.unlabelled_share * batch_size), batch_size - 1))

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

    def schedule(
        self, num_epochs: int, num_dimensions: int, begun: tuple[int, ...] = ()
    ) -> Schedule:
        """Schedule of a training of `num_epochs` epochs of a 2D or 3D configuration.

        Its rounds that have begun already did so in the epochs `begun`.

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
        return Schedule(num_epochs, warmup_epochs, self.num_rounds, begun)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; tuples become lists."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> MAPOConfig:
        """Undo `to_dict`, of this or an earlier version; settings of a later one do not count."""
        settings = _BEFORE | dict(settings)
        if isinstance(settings["preference_dropout"], bool):  # before there were choices
            before = _BEFORE["preference_dropout"]
            settings["preference_dropout"] = before if settings["preference_dropout"] else "off"
        known = {each.name: settings[each.name] for each in fields(cls) if each.name in settings}
        values: Any = {n: tuple(v) if isinstance(v, list) else v for n, v in known.items()}
        return cls(**values)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Fields in which `other`, a `to_dict` of an earlier training, differs, one line each."""
        mine, theirs = self.to_dict(), self.from_dict(other).to_dict()
        return [
            f"{name}: {theirs[name]} then, {value} now"
            for name, value in mine.items()
            if theirs[name] != value
        ]
