"""Whether what a training imports can be imported."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from nnunetv2_mapo.doctor.finding import OK, PROBLEM, Finding, last_line, say_command
from nnunetv2_mapo.doctor.requirements import PACKAGE, find_requirement, say_reinstall

# Module that is imported -> distributions that pip installs anew if it cannot be.
MODULES = MappingProxyType(
    {
        "torch": ("torch", "torchvision"),
        "torchvision": ("torch", "torchvision"),  # fails with torchvision::nms beside another torch
        "monai": ("monai",),
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer": ("nnunetv2",),
        "nnunetv2_mapo.trainer": (PACKAGE,),
    }
)
OPTIONAL = ("torchvision",)  # nnU-Net itself does not require it; where it is, it must work


def check_import(module: str) -> list[Finding]:
    """Import one of `MODULES`."""
    if module in OPTIONAL and find_spec(module) is None:
        return [Finding(OK, f"{module} is not installed")]
    try:
        import_module(module)
    except (Exception, SystemExit) as error:
        return [explain_failure(module, last_line(error))]
    return [Finding(OK, f"import {module}")]


def explain_failure(module: str, reason: str) -> Finding:
    """Say why a module cannot be imported.

    Args:
        module: One of `MODULES`.
        reason: Last line of the error, or how the process ended.
    """
    wanted = [find_requirement(name) for name in MODULES[module]]
    mend = (
        say_reinstall()
        if wanted == [PACKAGE]
        else say_command("pip", "install", "--force-reinstall", *wanted)
    )
    return Finding(PROBLEM, f"import {module}: {reason}", mend)
