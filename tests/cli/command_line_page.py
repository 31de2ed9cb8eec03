"""Writes `docs/reference/command-line.md`: what `nnUNetv2_mapo` and its sub-commands say to `-h`.

python tests/cli/command_line_page.py
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from nnunetv2_mapo.cli import build_parser

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "command-line.md"
INTRODUCTION = """\
# Command line

The package adds one command, `nnUNetv2_mapo`. Training and prediction stay nnU-Net's own commands
with a [trainer](trainers.md) of this package. It exits with 0 on success, 1 after an error that it
explains on stderr, 2 where the command line itself is wrong, and 130 after Ctrl-C.

`python tests/cli/command_line_page.py` writes this page.
"""
EXPLAINED = {  # where each sub-command is
    "demo": "[The demo](../get-started.md#the-demo)",
    "doctor": "[The doctor](../get-started.md#the-doctor)",
    "preview": "[Are there pairs, and which τ?](../how-to/preview.md)",
    "evaluate": "[Which metric are you ranked by?](../how-to/metrics.md#measure)",
    "compare": "[Did it help?](../how-to/did-it-help.md)",
    "report": "[The report](../how-to/did-it-help.md#the-report)",
    "export": "[Export](../how-to/use-the-model.md#export)",
    "uncertainty": "[Uncertainty](../how-to/use-the-model.md#uncertainty)",
    "choose": "[You have 20 outlines and 200 images](../how-to/choices.md)",
}


def sub_commands() -> dict[str, argparse.ArgumentParser]:
    """Parser of each sub-command by its name."""
    actions = build_parser()._actions
    [commands] = [each for each in actions if isinstance(each, argparse._SubParsersAction)]
    return dict(commands.choices)


def as_in_python_3_13(match: re.Match[str]) -> str:
    """`-o, --output DIR` instead of `-o DIR, --output DIR`, with the gap behind it filled up."""
    short, value, long, gap = match.groups()
    return f"{short}, {long} {value}" + (gap and gap + " " * len(f" {value}"))


def help_block(command: str, parser: argparse.ArgumentParser) -> str:
    """What `-h` prints, as a block of code."""
    text = re.sub(r"(-\w) (\S+), (--\w+) \2( *)", as_in_python_3_13, parser.format_help())
    return f"```text\n$ {command} -h\n{text}```\n"


def make_page() -> str:
    """The whole page, 80 columns wide."""
    os.environ["COLUMNS"] = "80"  # argparse reads it
    sections = [INTRODUCTION, help_block("nnUNetv2_mapo", build_parser())]
    for name, parser in sub_commands().items():
        command = f"nnUNetv2_mapo {name}"
        sections.append(f"## `{command}`\n\n{EXPLAINED[name]}\n\n{help_block(command, parser)}")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
