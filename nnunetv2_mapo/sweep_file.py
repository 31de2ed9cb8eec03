"""The file of a sweep: its entries, and everything that is wrong with them at once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from nnunetv2_mapo.config import MAPOConfig

COMBINE = ("one", "all")
# What a sweep decides itself; without checkpoints it would not see what is finished, and nnU-Net
# does not continue with pretrained weights (the variant FineTune begins from a training).
RESERVED = ("-tr", "-p", "--c", "--val", "--disable_checkpointing", "-pretrained_weights")
SETTINGS = tuple(each.name for each in fields(MAPOConfig))
WORD = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")  # "__" separates the parts of a folder's name


class SweepError(ValueError):
    """A file that is no sweep.

    Attributes:
        problems: One line each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class SweepFile:
    """Entries of a sweep's file.

    Attributes:
        dataset: Name or number of the data set.
        configuration: Such as `3d_fullres`.
        folds: Numbers, in the order in which they are trained.
        settings: Values of each setting that is varied; lists of lists became tuples.
        plans: Name of the plans.
        trainer: Base trainer X.
        variant: V, where the settings that are not varied are those of `nnUNetTrainer_MAPO_V`.
        combine: `"one"`: each value alone; `"all"`: each with each, the grid.
        baselines: Names of trainers that are trained and compared too; None: X and the control.
        arguments: More of `nnUNetv2_train`.
        name: What the names of the trainers begin with after `X_MAPO_`.
    """

    dataset: str | int
    configuration: str
    folds: list[int]
    settings: dict[str, list[Any]]
    plans: str = "nnUNetPlans"
    trainer: str = "nnUNetTrainer"
    variant: str | None = None
    combine: str = "one"
    baselines: list[str] | None = None
    arguments: list[str] = field(default_factory=list)
    name: str = "Sweep"


def read_entries(content: Any) -> SweepFile:
    """Check the content of a file.

    Args:
        content: What `json.loads` gave.

    Raises:
        SweepError: With every problem.
    """
    if problems := _find_problems(content):
        raise SweepError(problems)
    settings = {name: list(map(_freeze, content["settings"][name])) for name in content["settings"]}
    return SweepFile(**{**content, "settings": settings})


def _find_problems(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return [f"an object is needed, {{…}}, with the keys {', '.join(_CHECKS)}"]
    problems = [
        f"{key} is missing: {_CHECKS[key][1]}"
        for key in (each.name for each in fields(SweepFile) if _is_needed(each))
        if key not in content
    ]
    for key, value in content.items():
        if key not in _CHECKS:
            problems.append(f"{key} is not a key of a sweep{_suggest(key, _CHECKS)}")
        elif not _CHECKS[key][0](value):
            problems.append(f"{key}: {json.dumps(value)} is not valid: {_CHECKS[key][1]}")
        elif key == "settings":
            problems += _find_problems_of_settings(value)
            if content.get("variant") is None:  # else they are judged together with the variant's
                problems += _find_problems_of_values(value)
    return problems


def _is_needed(entry: Any) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _find_problems_of_settings(settings: dict[str, list[Any]]) -> list[str]:
    problems = []
    for name, values in settings.items():
        if name not in SETTINGS:
            problems.append(f"settings: {name} is not a setting{_suggest(name, SETTINGS)}")
        elif not isinstance(values, list) or not values:
            problems.append(f"settings: {name} needs a list of values, such as [0.1, 0.3]")
        elif not _are_different(list(map(_freeze, values))):
            problems.append(f"settings: {name} has a value twice: {json.dumps(values)}")
    return problems


def _find_problems_of_values(settings: dict[str, list[Any]]) -> list[str]:
    known = {name: values for name, values in settings.items() if name in SETTINGS}
    return find_invalid(
        MAPOConfig(**{name: _freeze(value)})
        for name, values in known.items()
        if isinstance(values, list)
        for value in values
    )


def find_invalid(configurations: Iterable[MAPOConfig]) -> list[str]:
    """Problems of settings, each once, in their order."""
    lines = (line for each in configurations for line in _list_problems(each))
    return list(dict.fromkeys(lines))


def _list_problems(configuration: MAPOConfig) -> list[str]:
    try:
        configuration.validate()
    except ValueError as error:
        _, *lines = str(error).splitlines()
        return [f"settings: {line.strip()}" for line in lines]
    return []


def _suggest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known)
    if close:
        return f". Did you mean {' or '.join(close)}?"
    return f". Valid: {', '.join(known)}"


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def _are_different(values: list[Any]) -> bool:
    return all(value not in values[:place] for place, value in enumerate(values))


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and WORD.fullmatch(value) is not None


def _is_plain_word(value: Any) -> bool:
    return _is_word(value) and "_MAPO" not in value


def _is_dataset(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, str) and value != "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_folds(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value)) and (
        _are_different(value)
    )  # fmt: skip


def _is_baselines(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and all(map(_is_word, value)) and _are_different(value)


def _is_arguments(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(word, str) and word.split("=")[0] not in RESERVED for word in value
    )


# What is valid under each key, as a check and in words.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dataset": (_is_dataset, 'the number or name of a data set, such as "4"'),
    "configuration": (_is_word, 'a configuration of the plans, such as "3d_fullres"'),
    "folds": (_is_folds, "a list of different numbers from 0, such as [0, 1]"),
    "settings": (
        lambda value: isinstance(value, dict) and bool(value),
        'values of each setting to vary, such as {"tau": [0.05, 0.1]}',
    ),
    "plans": (_is_word, 'the name of plans, such as "nnUNetPlans"'),
    "trainer": (_is_plain_word, 'a base trainer without _MAPO, such as "nnUNetTrainer"'),
    "variant": (
        lambda value: value is None or _is_plain_word(value),
        'null, or V of a trainer nnUNetTrainer_MAPO_V, such as "FineTune"',
    ),
    "combine": (lambda value: value in COMBINE, '"one" (each value alone) or "all" (the grid)'),
    "baselines": (_is_baselines, 'a list of different trainers, such as ["nnUNetTrainer"]'),
    "arguments": (
        _is_arguments,
        f"a list of words for nnUNetv2_train; {', '.join(RESERVED)} are the sweep's own",
    ),
    "name": (_is_plain_word, "letters, digits and single underscores, without _MAPO"),
}
