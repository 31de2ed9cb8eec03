"""The rule of names: `X_MAPO` is any trainer X with MAPO, `X_MAPO_V` any trainer X with variant V.

`X_MAPO_V_NoPreference` is the control of that: the same settings without a round.

nnU-Net asks each of its trainer modules for a class by name; `find_trainer` answers for one of
them. It imports nothing heavy until it is asked for a name of this form.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import re
import sys
import traceback
from dataclasses import replace
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

_NAME = re.compile(r"(?P<base>\w+?)_MAPO(?:_(?P<variant>\w+))?")
_PLAIN = "nnUNetTrainer_MAPO"
_CONTROL = "_NoPreference"
# What Python itself adds to a class, up to 3.14, is no change of the trainer.
_IN_EVERY_VARIANT = {
    "mapo", "__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__",
    "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
}  # fmt: skip
_in_search: set[str] = set()
_failed: dict[str, str] = {}  # files that the latest search could not import, and why


def find_trainer(name: str) -> type:
    """Trainer class of a name that follows the rule, for a module's `__getattr__`.

    A class that is defined under this very name anywhere comes first. Files that cannot be imported
    are named on the terminal and left out: nnU-Net may have found the base before it came to them.

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
            f"{base_name}.{suggest(base_name)}{_list_failed()}"
        )
        raise RuntimeError(message)
    variant: Any = nnUNetTrainer_MAPO
    settings: dict[str, Any] = {}
    if variant_name is not None:
        variant = _search(f"{_PLAIN}_{variant_name}")
        with_preferences = variant_name.removesuffix(_CONTROL)
        if variant is None and with_preferences != variant_name:
            variant, settings = _search(f"{_PLAIN}_{with_preferences}"), {"num_rounds": 0}
    if variant is None or issubclass(base, MAPOTrainer):
        message = (
            f"{name} asks for the variant {variant_name} of MAPO, but there is no trainer "
            f"{_PLAIN}_{variant_name}. There are: {', '.join(_list_variants(nnUNetTrainer_MAPO))}; "
            "a variant of your own is a class in a folder that nnUNet_extTrainer names."
            f"{_list_failed()}"
        )
        raise RuntimeError(message)
    if more := describe_more(variant):
        message = (
            f"{variant.__name__} is more than its settings ({more}), so it cannot be combined with "
            f"{base_name} by name: write {name} as a class of its own."
        )
        raise RuntimeError(message)
    mapo = replace(variant.mapo, **settings)
    body = {"mapo": mapo, "__doc__": f"{base_name} with MAPO.", "__module__": __name__}
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
    from nnunetv2.utilities import find_class_by_name
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    _in_search.add(name)
    tolerant = SimpleNamespace(import_module=_import_or_name)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            patch.object(find_class_by_name, "importlib", tolerant),
        ):
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if "Could not find" not in str(error):
            raise
        return None
    finally:
        _in_search.discard(name)


def _import_or_name(name: str) -> ModuleType:
    """A module; an empty one if it cannot be imported, whose file is then named on the terminal."""
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script of a clone may do anything
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise  # nnU-Net leaves it out itself
        file, reason = _find_file(error) or name, f"{type(error).__name__}: {error}"
        if _failed.get(file) != reason:
            _failed[file] = reason
            print(f"MAPO: left out in the search: {file} ({reason})", file=sys.stderr)
        return ModuleType(name)
    _failed.pop(str(getattr(module, "__file__", "")), None)
    return module


def _find_file(error: BaseException) -> str | None:
    """First file that was run in an import, or that could not be."""
    own = (__file__, importlib.__file__)
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename not in own and not frame.filename.startswith("<frozen"):
            return frame.filename
    return getattr(error, "filename", None) or getattr(error, "path", None)  # syntax, or a binary


def _list_failed() -> str:
    files = "; ".join(f"{file} ({reason})" for file, reason in _failed.items())
    return f" These files could not be imported: {files}." if files else ""


def _list_variants(plain: Any) -> list[str]:
    """Names of the variants in the modules that nnU-Net has just looked through."""
    names = {variant.__name__ for variant in plain.__subclasses__()}
    return sorted(name for name in names if name.startswith(f"{_PLAIN}_"))


def suggest(name: str) -> str:
    """Names of trainers that have been imported and are like this one, in words; or nothing."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    known: dict[str, type] = {}
    pending = [nnUNetTrainer]
    while pending:
        trainer = pending.pop()
        known[trainer.__name__] = trainer
        pending += trainer.__subclasses__()
    close = difflib.get_close_matches(name, known)
    return f" Did you mean {' or '.join(close)}?" if close else ""
