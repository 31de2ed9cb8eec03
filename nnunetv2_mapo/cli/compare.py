"""`nnUNetv2_mapo compare`: methods on the same cases, with what can and cannot be concluded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_mapo.support.errors import CommandError

if TYPE_CHECKING:
    from nnunetv2_mapo.tools.compare.comparison import MetricComparison
    from nnunetv2_mapo.tools.compare.comparison_text import ComparisonText
    from nnunetv2_mapo.tools.compare.methods import Method


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command `compare`."""
    text = (
        "Compares methods on the same cases: mean, standard deviation and median of each metric, "
        "difference of each case to the first method, 95 % bootstrap interval of its mean, "
        "Wilcoxon signed-rank test with Holm's correction, wins, ties and losses, and what each "
        "training cost. Reads what nnUNetv2_mapo evaluate wrote, or else nnU-Net's own Dice and "
        "IoU. Prints Markdown."
    )
    parser = commands.add_parser(
        "compare",
        help="is one method better, by how much, is it certain?",
        description=text,
        epilog="example: nnUNetv2_mapo compare nnUNetTrainer__*__2d nnUNetTrainer_MAPO__*__2d",
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="two or more, the baseline first: model folders TRAINER__PLANS__CONFIGURATION of "
        "nnUNet_results, or folders of segmentations that were evaluated",
    )
    parser.add_argument(
        "-f", nargs="+", metavar="FOLD", help="folds of the models to compare (default: all)"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="metrics to compare (default: all); fewer, chosen beforehand, need a smaller "
        "correction",
    )
    parser.add_argument(
        "-o",
        type=Path,
        metavar="DIR",
        help="folder for comparison.md, comparison.html and comparison.json",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Compare, write the files, print Markdown.

    Raises:
        CommandError: The folders cannot be compared, or the files not be written.
    """
    folders = [folder.expanduser() for folder in arguments.folders]
    if len(folders) < 2:
        message = "A comparison needs two folders or more, the baseline first."
        raise CommandError(message)
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        message = f"There is no folder {', '.join(missing)}."
        raise CommandError(message)
    from nnunetv2_mapo.tools.compare.comparison_text import format_markdown

    text, comparisons, methods = make_comparison(folders, arguments.f, arguments.metrics)
    if arguments.o is not None:  # before printing, which a closed pipe can end
        write_files(arguments.o.expanduser(), text, comparisons, methods)
    print(format_markdown(text, with_cases=False))
    if arguments.o is not None:
        print(f"\nWritten: comparison.md, comparison.html and comparison.json in {arguments.o}")


def make_comparison(
    folders: Sequence[Path], folds: Sequence[str] | None, metrics: Sequence[str] | None
) -> tuple[ComparisonText, list[MetricComparison], list[Method]]:
    """Compare folders.

    Args:
        folders: Two or more that exist, the baseline first.
        folds: Folds of the models to compare; None: all.
        metrics: Names of the metrics; None: all.

    Returns:
        What is said; the comparison of each metric; the methods.

    Raises:
        CommandError: The folders cannot be compared.
    """
    from nnunetv2_mapo.tools.compare.comparison_text import describe_comparison
    from nnunetv2_mapo.tools.compare.method_values import compare_methods
    from nnunetv2_mapo.tools.compare.methods import ComparisonError, note_sources, read_methods

    try:
        methods = read_methods(folders, folds)
        comparisons = compare_methods(methods, metrics)
    except ComparisonError as error:
        raise CommandError(str(error)) from error
    notes = note_sources(methods, folders, folds)
    return describe_comparison(comparisons, methods, notes), comparisons, methods


def write_files(
    folder: Path,
    text: ComparisonText,
    comparisons: Sequence[MetricComparison],
    methods: Sequence[Method],
) -> None:
    """Write the comparison as Markdown, HTML and JSON.

    Raises:
        CommandError: The folder cannot be written to.
    """
    from nnunetv2_mapo.support.files import WriteError, write_atomically
    from nnunetv2_mapo.tools.compare.comparison_page import comparison_to_dict, render_comparison
    from nnunetv2_mapo.tools.compare.comparison_text import format_markdown
    from nnunetv2_mapo.tools.page import write_page

    content = comparison_to_dict(text, comparisons, methods)
    baseline, *others = text.methods
    try:
        folder.mkdir(parents=True, exist_ok=True)
        markdown = format_markdown(text, with_cases=True)
        write_atomically(folder / "comparison.md", f"{markdown}\n".encode())
        write_page(
            folder / "comparison.html",
            "comparison.html",
            title=f"{', '.join(others)} compared with {baseline}",
            comparison=render_comparison(text, comparisons),
        )
        write_atomically(folder / "comparison.json", json.dumps(content, indent=1).encode())
    except (OSError, WriteError) as error:
        message = f"The comparison cannot be written: {error}. Name another folder with -o."
        raise CommandError(message) from error
