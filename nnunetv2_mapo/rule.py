"""The rule of names: `X_MAPO` is any trainer X with MAPO, `X_MAPO_V` any trainer X with variant V.

nnU-Net asks each of its trainer modules for a class by name; `find_trainer` answers for one of
them. It imports nothing heavy until it is asked for a name of this form.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from functools import cache
from typing import Any

_NAME = re.compile(r"(?P<base>\w+?)_MAPO(?:_(?P<variant>\w+))?")
_PLAIN = "nnUNetTrainer_MAPO"
# What Python itself adds to a class, up to 3.14, is no change of the trainer.
_IN_EVERY_VARIANT = {
    "mapo", "__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__",
    "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
}  # fmt: skip
_in_search: set[str] = set()


def find_trainer(name: str) -> type:
    """Trainer class of a name that follows the rule, for a module's `__getattr__`.

    A class that is defined under this very name anywhere comes first.

    Raises:
        AttributeError: The name does not follow the rule.
        RuntimeError: It does, but there is no such base trainer or variant.
    """
    match = _NAME.fullmatch(name)
    if match is None or name in _in_search:
        message = f"no trainer is called {name!r} here"
        raise AttributeError(message)
    return _search(name) or _combine(name, match["base"], match["variant"])


@cache
def _combine(name: str, base_name: str, variant_name: str | None) -> type:
    from nnunetv2_mapo.trainer import MAPOTrainer, nnUNetTrainer_MAPO

    base = _search(base_name)
    if base is None:
        message = (
            f"{name} means the trainer {base_name} with MAPO, but nnU-Net knows no trainer "
            f"{base_name}.{_suggest(base_name)}"
        )
        raise RuntimeError(message)
    variant: Any = nnUNetTrainer_MAPO
    if variant_name is not None:
        variant = _search(f"{_PLAIN}_{variant_name}")
    if variant is None or issubclass(base, MAPOTrainer):
        message = (
            f"{name} asks for the variant {variant_name} of MAPO, but there is no trainer "
            f"{_PLAIN}_{variant_name}. There are: {', '.join(_list_variants(nnUNetTrainer_MAPO))}; "
            "a variant of your own is a class in a folder that nnUNet_extTrainer names."
        )
        raise RuntimeError(message)
    if more := describe_more(variant):
        message = (
            f"{variant.__name__} is more than its settings ({more}), so it cannot be combined with "
            f"{base_name} by name: write {name} as a class of its own."
        )
        raise RuntimeError(message)
    body = {"mapo": variant.mapo, "__doc__": f"{base_name} with MAPO.", "__module__": __name__}
    return type(name, (MAPOTrainer, base), body)


def describe_more(variant: type) -> str:
    """What a variant is besides the settings in `mapo`, in words; empty if nothing."""
    from nnunetv2_mapo.trainer import nnUNetTrainer_MAPO

    if not issubclass(variant, nnUNetTrainer_MAPO):
        return f"it is no subclass of {_PLAIN}"
    # not only the classes before it: V(nnUNetTrainer_MAPO, Other) has Other behind it
    added = [each for each in variant.__mro__ if each not in nnUNetTrainer_MAPO.__mro__]
    names = sorted({name for each in added for name in vars(each)} - _IN_EVERY_VARIANT)
    return f"it defines {', '.join(names)}" if names else ""


def _search(name: str) -> Any:
    """Class of this name by nnU-Net's own look-up, without this module; None if there is none."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    _in_search.add(name)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if "Could not find" not in str(error):
            raise
        return None
    finally:
        _in_search.discard(name)


def _list_variants(plain: Any) -> list[str]:
    """Names of the variants in the modules that nnU-Net has just looked through."""
    names = {variant.__name__ for variant in plain.__subclasses__()}
    return sorted(name for name in names if name.startswith(f"{_PLAIN}_"))


def _suggest(name: str) -> str:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    known: dict[str, type] = {}
    pending = [nnUNetTrainer]
    while pending:
        trainer = pending.pop()
        known[trainer.__name__] = trainer
        pending += trainer.__subclasses__()
    close = difflib.get_close_matches(name, known)
    return f" Did you mean {' or '.join(close)}?" if close else ""
