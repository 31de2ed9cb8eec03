"""Which comparison says whether preferences help: that of a training with its control.

It is chosen by what was trained, before any result is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.tools.compare import Method
from nnunetv2_mapo.tools.history import History, has_no_pairs
from nnunetv2_mapo.tools.train_command import follow

_DROPOUT = ("warmup_dropout", "rates_2d", "rates_3d", "granularity", "dropout_include",
            "dropout_exclude")  # fmt: skip


class Pair(NamedTuple):
    """Names of two methods that are compared: the first minus the second."""

    method: str
    control: str

    def __str__(self) -> str:
        return f"{self.method} minus {self.control}"


def choose_pairs(methods: Sequence[Method]) -> list[Pair]:
    """Comparisons of the methods; the first one is the primary.

    It is of the last method that learnt from preferences (without any, of the last one that was
    to, or else the last one) and its control, or else the first other method. The others are
    compared with their control and with the first method, the baseline.

    Args:
        methods: Two or more.
    """
    learnt, asked = ([each for each in methods if told(each)] for told in (prefers, wants_pairs))
    primary = (learnt or asked or [*methods])[-1]
    pairs: dict[frozenset[str], Pair] = {}
    for method in (primary, *methods):
        others = [each for each in methods if each is not method]
        controls = [each for each in others if is_control(each, method)][:1]
        to = controls or others[:1] if method is primary and not pairs else [*controls, methods[0]]
        for other in to:
            if other is not method:
                pair = Pair(method.name, other.name)
                pairs.setdefault(frozenset(pair), pair)
    return [*pairs.values()]


def prefers(method: Method) -> bool:
    """Whether a method's training learnt from preferences; one that found no pair did not."""
    known = [history for history in method.histories.values() if history is not None]
    return wants_pairs(method) and not has_no_pairs(known)


def wants_pairs(method: Method) -> bool:
    """Whether a method's training was to learn from preferences."""
    history = _any_history(method)
    if history is None or history.config is None:
        return False
    return len(history.stages) > 1 and MAPOConfig.from_dict(history.config).has_preferences


def is_control(other: Method, method: Method) -> bool:
    """Whether one method is the other one without preferences."""
    history = _any_history(method)
    if history is None or prefers(other) or list_mixed(method, other):
        return False
    # without its checkpoints, its name tells
    trainers = [_split_name(each)[0] for each in (method, other)]
    return bool(_any_history(other)) or trainers[1] == name_control(trainers[0], history)


def list_mixed(method: Method, other: Method) -> list[str]:
    """In what two trainings differ besides preferences, in words, as far as it is known."""
    (trainer, *plan), (base, *others) = (_split_name(each) for each in (method, other))
    differences = {}
    if plan and others:  # models
        bases = (name.partition("_MAPO")[0] for name in (trainer, base))
        differences = {
            "the base trainer": len({*bases}) > 1,
            "plans or configuration": plan != others,
        }
    mine, theirs = _any_history(method), _any_history(other)
    if mine is not None and theirs is not None:
        a, b = (_settings_without_preferences(history) for history in (mine, theirs))
        differences = {
            "dropout in training": _dropout(a) != _dropout(b),
            "the start": a.fine_tune != b.fine_tune or _starts_differ(mine, theirs),
            "the number of epochs": mine.num_epochs != theirs.num_epochs,
            "the learning rate": _learning_rate(a) != _learning_rate(b),
            "labels of unlabelled images": _labels(mine) != _labels(theirs),
            **differences,
        }
    return [words for words, differs in differences.items() if differs]


def name_control(trainer: str, history: History) -> str:
    """Trainer of the control: the base trainer itself where MAPO changes nothing else.

    Empty if the trainer's name does not say what its base is.
    """
    if "_MAPO" not in trainer:
        return ""
    config, plain = _settings_without_preferences(history), MAPOConfig()
    is_plain = (_dropout(config), config.fine_tune, _learning_rate(config)) == (
        _dropout(plain), plain.fine_tune, _learning_rate(plain)
    )  # fmt: skip
    lengths = (config.num_epochs_2d, config.num_epochs_3d, config.num_epochs_factor)
    if is_plain and lengths == (None, None, 1):
        return trainer.partition("_MAPO")[0]
    return f"{trainer}_NoPreference"


def _any_history(method: Method) -> History | None:
    return next((each for each in method.histories.values() if each is not None), None)


def _settings_without_preferences(history: History) -> MAPOConfig:
    """Settings of a training as if it had no preferences; a stock trainer has the default's."""
    config = MAPOConfig.from_dict(history.config) if history.config else MAPOConfig()
    return replace(config, num_rounds=0, warmup_dropout=config.trains_with_dropout)


def _dropout(config: MAPOConfig) -> tuple[object, ...]:
    """What decides the dropout of a training without preferences."""
    return tuple(getattr(config, name) for name in _DROPOUT) if config.warmup_dropout else ()


def _learning_rate(config: MAPOConfig) -> tuple[object, ...]:
    return config.adam_learning_rate, config.learning_rate_factor


def _labels(history: History) -> str:
    """What is a label of images without outlines; empty if nothing."""
    config = MAPOConfig.from_dict(history.config) if history.config else MAPOConfig()
    return "" if config.has_preferences or not config.learns_unlabelled else config.unlabelled


def _starts_differ(mine: History, theirs: History) -> bool:
    """Whether the same fold was fine-tuned from other weights."""
    is_known = mine.base is not None and theirs.base is not None
    return is_known and mine.fold == theirs.fold and mine.base != theirs.base


def _split_name(method: Method) -> list[str]:
    """Trainer, plans and configuration of a model folder; of another one its name."""
    return follow(method.folder).name.split("__")
