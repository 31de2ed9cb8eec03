"""A sweep: trainings that differ in settings. Knows no files and nothing of nnU-Net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import product
from typing import Any, NamedTuple

from nnunetv2_mapo.config import MAPOConfig
from nnunetv2_mapo.sweep_file import SETTINGS, WORD, SweepError, SweepFile, find_invalid

PLAIN = "nnUNetTrainer_MAPO"
_LONGEST = 12  # characters of a value in a name; a longer one is numbered


@dataclass(frozen=True)
class Training:
    """One trainer of a sweep, which is trained on each of its folds.

    Attributes:
        trainer: Name of its class.
        settings: Settings of MAPO; None of a trainer that only the file's baselines name.
        label: What it varies, or the trainer's name.
        is_own: Whether the sweep writes its class.
    """

    trainer: str
    settings: MAPOConfig | None
    label: str
    is_own: bool


@dataclass(frozen=True)
class Sweep:
    """A file and the trainings that follow from it.

    Attributes:
        file: The file's entries.
        start: Settings that those of a combination replace.
        trainings: Baselines first, then the combinations; no trainer and no settings twice.
    """

    file: SweepFile
    start: MAPOConfig
    trainings: tuple[Training, ...]

    @property
    def reference(self) -> Training:
        """What the others are compared with: the first control, else the first training."""
        controls = (each for each in self.trainings if each.trainer.endswith("_NoPreference"))
        return next(controls, self.trainings[0])

    @property
    def reference_first(self) -> list[Training]:
        """The trainings in the order in which they are compared."""
        return sorted(self.trainings, key=lambda training: training != self.reference)

    def train_arguments(self, dataset: str, training: Training, fold: int) -> list[str]:
        """Arguments of `nnUNetv2_train` for one training and fold."""
        file = self.file
        words = [dataset, file.configuration, str(fold), "-tr", training.trainer, "-p", file.plans]
        return [*words, *file.arguments]

    def model_folder(self, training: Training) -> str:
        """Name of a training's folder in the data set's folder of `nnUNet_results`."""
        return f"{training.trainer}__{self.file.plans}__{self.file.configuration}"

    def check_dimensions(self, num_dimensions: int) -> None:
        """Refuse settings that a 2D or 3D configuration does not use.

        Raises:
            SweepError: One line for each of them.
        """
        unused, used = ("_3d", "_2d") if num_dimensions == 2 else ("_2d", "_3d")
        problems = [
            f"settings: {name} has no effect in {self.file.configuration}, which is "
            f"{num_dimensions}D: vary {name.removesuffix(unused)}{used}"
            for name in self.file.settings
            if name.endswith(unused)
        ]
        if problems:
            raise SweepError(problems)


def make_sweep(file: SweepFile, start: MAPOConfig) -> Sweep:
    """List the trainings of a file.

    A combination whose settings another trainer has already, such as the default's, is that one:
    nothing is trained twice.

    Args:
        file: The file's entries.
        start: Settings that those of a combination replace.

    Raises:
        SweepError: One line for each setting that is not valid.
    """
    combinations = list(_combine(file))
    if problems := find_invalid(replace(start, **each.values) for each in combinations):
        raise SweepError(problems)
    prefix = f"{file.trainer}_MAPO_{file.name}_"
    known = _name_known(file, start)
    baselines = file.baselines
    if baselines is None:
        baselines = [file.trainer, known[replace(start, num_rounds=0)]]
    settings_of = {trainer: settings for settings, trainer in known.items()}
    trainings = {}
    for name in baselines:
        is_own = name.startswith(prefix) and name in settings_of
        trainings[name] = Training(name, settings_of.get(name), name, is_own)
    for combination in combinations:
        settings = replace(start, **combination.values)
        trainer = known.get(settings, prefix + combination.name)
        label = describe_values(combination.values)
        if earlier := trainings.get(trainer):
            label = f"{earlier.label}, {label}"
        elif settings in known:
            label = f"{trainer}, {label}"
        is_own = trainer.startswith(prefix)
        trainings[trainer] = Training(trainer, settings, label, is_own)
    return Sweep(file, start, tuple(trainings.values()))


class _Combination(NamedTuple):
    """Values of one training, and its name."""

    values: dict[str, Any]
    name: str


def _combine(file: SweepFile) -> Iterator[_Combination]:
    """Combinations in the order of the file; the order of settings does not change their names."""
    values = {
        field: [
            (value, name_value(field, value, number))
            for number, value in enumerate(file.settings[field], 1)
        ]
        for field in SETTINGS
        if field in file.settings
    }
    if file.combine == "one":
        for field in file.settings:
            for value, name in values[field]:
                yield _Combination({field: value}, name)
        return
    for choice in product(*(values[field] for field in file.settings)):
        named = dict(zip(file.settings, choice, strict=True))
        name = "_".join(named[field][1] for field in values)
        yield _Combination({field: value for field, (value, _) in named.items()}, name)


def _name_known(file: SweepFile, start: MAPOConfig) -> Mapping[MAPOConfig, str]:
    """Trainers of the settings that have one without the sweep: control and start."""
    if file.variant is None:
        plain, control = f"{file.trainer}_MAPO", f"{file.trainer}_MAPO_NoPreference"
    else:
        plain = f"{file.trainer}_MAPO_{file.variant}"
        control = f"{file.trainer}_MAPO_{file.name}_NoPreference"  # of the variant
    return {replace(start, num_rounds=0): control, start: plain}


def name_value(field: str, value: Any, number: int) -> str:
    """Name of a setting and its value, such as `tau005` for 0.05.

    Two values of a setting never share a name: digits that start with 0 are decimals, so 0.5 is
    `05` and 5 is `5`; 2.5 is `2p5`.

    Args:
        field: Name of the setting.
        value: Its value.
        number: Place of the value in its list, from 1; names what has no short name, such as rates.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        digits = _name_number(value)
        return f"{field}{digits}" if len(digits) <= _LONGEST else f"{field}_{number}"
    word = str(value)
    return f"{field}_{word if WORD.fullmatch(word) and len(word) <= _LONGEST else number}"


def _name_number(value: float) -> str:
    text = format(Decimal(repr(value)), "f")
    whole, _, decimals = text.replace("-", "m").partition(".")
    decimals = decimals.rstrip("0")
    if not decimals:
        return whole
    return f"{whole}{decimals}" if whole in ("0", "m0") else f"{whole}p{decimals}"


def describe_values(values: Mapping[str, Any]) -> str:
    """Settings in words, such as `tau = 0.05, beta = 0.3`."""
    return ", ".join(f"{field} = {describe_value(value)}" for field, value in values.items())


def describe_value(value: Any) -> str:
    """A value for a table; of long lists, such as rates, the first two and the last."""
    if not isinstance(value, tuple):
        return str(value)
    shown = [*map(str, value[:2]), "…", str(value[-1])] if len(value) > 4 else map(str, value)
    return f"({', '.join(shown)})"
