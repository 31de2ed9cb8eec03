"""`nnUNetv2_mapo --print-completion SHELL`: a script with which the TAB key completes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
_FOLDERS = ("DIR", "FOLDER")  # ends of the names of arguments that are folders


class PrintCompletion(argparse.Action):
    """Prints the script that completes sub-commands, options, choices and paths, then exits."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Print the script of the shell `values`."""
        import shtab  # not at the top: help must not wait for it

        for action in find_paths(parser):
            is_folder = str(action.metavar).endswith(_FOLDERS)
            # shtab reads this attribute; a file completes to folders on the way to it too
            action.complete = shtab.DIRECTORY if is_folder else shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, values))
        parser.exit()


def find_paths(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Arguments of a parser and its sub-commands that are files or folders (`type=Path`)."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from find_paths(command)
        elif action.type is Path:
            yield action
