"""The steps of a comparison: read the methods, compare them, print, write."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import WriteError, write_atomically
from nnunetv2_mapo.tools.compare.comparison import MetricComparison
from nnunetv2_mapo.tools.compare.comparison_page import comparison_to_dict, render_comparison
from nnunetv2_mapo.tools.compare.comparison_text import (
    ComparisonText,
    describe_comparison,
    format_markdown,
)
from nnunetv2_mapo.tools.compare.method_values import compare_methods
from nnunetv2_mapo.tools.compare.methods import (
    ComparisonError,
    Method,
    note_sources,
    read_methods,
)
from nnunetv2_mapo.tools.page import write_page


def run_compare(arguments: argparse.Namespace, folders: Sequence[Path]) -> None:
    """Compare folders from the parsed command line, write the files, print Markdown.

    Raises:
        CommandError: The folders cannot be compared, or the files not be written.
    """
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
