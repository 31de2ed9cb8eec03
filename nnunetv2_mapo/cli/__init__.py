"""The command `nnUNetv2_mapo`: its sub-commands."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper

from nnunetv2_mapo import __version__
from nnunetv2_mapo.cli.choosing import add_choose
from nnunetv2_mapo.cli.options import find_model
from nnunetv2_mapo.cli.results import add_compare, add_evaluate, add_export, add_uncertainty
from nnunetv2_mapo.cli.trainings import add_demo, add_doctor, add_preview, add_report
from nnunetv2_mapo.support.errors import MAPOError

# Help must answer at once: nothing that this module imports may import torch, nnU-Net or numpy.

# In the order in which a user meets them.
_COMMANDS = (
    add_demo, add_doctor, add_preview, add_evaluate, add_compare, add_report, add_export,
    add_uncertainty, add_choose,
)  # fmt: skip
_DESCRIPTION = """\
MAPO trains any network of nnU-Net v2 to prefer its better segmentations: it
segments each training case several times with dropout, and learns where such a
segmentation is better or worse than the plain one.
"""
_EPILOG = """\
To train with MAPO, append _MAPO to the name of any trainer of nnU-Net:
  nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainer_MAPO
"""


def build_parser() -> argparse.ArgumentParser:
    """Parser of `nnUNetv2_mapo` with every sub-command."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_mapo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2-mapo {__version__}")
    commands = parser.add_subparsers(title="sub-commands", metavar="COMMAND")
    for add_command in _COMMANDS:
        add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        arguments: Command line without the program's name; None: the process's own.

    Returns:
        Exit code: 0, 1 after an error that is explained on stderr, 130 after Ctrl-C. argparse
        itself exits with 2 where the command line is wrong.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Windows writes files in cp1252, which has no ↑
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if not hasattr(parsed, "run"):
        parser.print_help()
        return 0
    # What others will change in their packages is nothing that a user can mend.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        if {"model", "configuration"} <= vars(parsed).keys():  # it has add_model
            find_model(parsed)
        parsed.run(parsed)
    except MAPOError as error:
        print(f"nnUNetv2_mapo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nnUNetv2_mapo: interrupted", file=sys.stderr)
        return 130
    return 0
