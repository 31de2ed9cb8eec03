"""Whether what a training imports can be imported."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from nnunetv2_mapo.tools.doctor.finding import OK, PROBLEM, Finding, last_line, say_pip
from nnunetv2_mapo.tools.doctor.requirements import NNUNET, PACKAGE, find_requirement, say_reinstall

# Module that is imported -> distribution that it is of.
MODULES = MappingProxyType(
    {
        "torch": "torch",
        "torchvision": "torchvision",  # fails with torchvision::nms beside another torch
        "monai": "monai",
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer": NNUNET,
        "nnunetv2_mapo.trainer": PACKAGE,
    }
)
OPTIONAL = ("torchvision",)  # nnU-Net itself does not require it; where it is, it must work


def check_import(module: str) -> list[Finding]:
    """Import one of `MODULES`."""
    if module in OPTIONAL and find_spec(module) is None:
        return [Finding(OK, f"{module} is not installed")]
    try:
        import_module(module)
    except ModuleNotFoundError as error:  # pip adds what a package lacks
        mend = say_pip("install", find_requirement(MODULES[module]))
        return [Finding(PROBLEM, f"import {module}: {last_line(error)}", mend)]
    except (Exception, SystemExit) as error:
        return [explain_failure(module, last_line(error))]
    return [Finding(OK, f"import {module}")]


def explain_failure(module: str, reason: str) -> Finding:
    """Say that a module is there but cannot be imported.

    Args:
        module: One of `MODULES`.
        reason: Last line of the error, or how the process ended.
    """
    name = MODULES[module]
    # the two have to fit each other, and torch the libraries of CUDA
    is_torch = name in ("torch", "torchvision")
    mend = (
        say_pip("install", "--force-reinstall", find_requirement("torch"), "torchvision")
        if is_torch
        else say_reinstall(name)
    )
    return Finding(PROBLEM, f"import {module}: {reason}", mend)
