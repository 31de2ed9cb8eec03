"""What a sweep found: the comparison of its finished trainings, and a table of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nnunetv2_mapo.cli.compare import make_comparison, write_files
from nnunetv2_mapo.cli.sweep_train import SweepRun, find_state
from nnunetv2_mapo.compared import Method
from nnunetv2_mapo.comparison import MetricComparison
from nnunetv2_mapo.comparison_text import ComparisonText
from nnunetv2_mapo.history import History
from nnunetv2_mapo.sweep import Training
from nnunetv2_mapo.table import format_table

Finished = Mapping[Training, Sequence[int]]  # folds of each training
_HEADER = ["training", "Dice", "difference", "95 % interval", "verdict", "pairs in each round"]


def find_finished(run: SweepRun) -> dict[Training, list[int]]:
    """Finished folds of each training, the reference first."""
    return {
        training: [
            fold
            for fold in run.sweep.file.folds
            if find_state(run.fold(training, fold)) == "finished"
        ]
        for training in run.sweep.reference_first
    }


def tabulate(run: SweepRun, finished: Finished) -> str:
    """Compare what is finished with the reference and write the comparison; a table of it.

    Those folds count that are finished in every training that has finished any.

    Args:
        run: The sweep.
        finished: See `find_finished`.

    Raises:
        CommandError: The results cannot be compared, or not be written.
    """
    compared = [training for training, folds in finished.items() if folds]
    folds = [
        fold for fold in run.sweep.file.folds if all(fold in finished[each] for each in compared)
    ]
    if not finished[run.sweep.reference] or len(compared) < 2 or not folds:
        there = "; ".join(f"{each.trainer}: {finished[each] or 'none'}" for each in finished)
        return (
            f"Nothing to compare yet: the reference, {run.sweep.reference.trainer}, and another "
            f"training must have finished the same fold. Finished folds: {there}."
        )
    models = [run.results / run.sweep.model_folder(training) for training in compared]
    made = make_comparison(models, list(map(str, folds)), None)
    write_files(run.folder.root, *made)
    lines = [format_table(_HEADER, list_rows(compared, *made))]
    lines.append(f"Final validation of fold {', '.join(map(str, folds))}. {made[0].conclusion}")
    if missing := [training.trainer for training in finished if training not in compared]:
        lines.append(f"Not finished in any fold: {', '.join(missing)}.")
    lines.append(f"All of it: comparison.html, comparison.md, comparison.json in {run.folder.root}")
    return "\n".join(lines)


def list_rows(
    trainings: Sequence[Training],
    text: ComparisonText,
    comparisons: Sequence[MetricComparison],
    methods: Sequence[Method],
) -> list[list[str]]:
    """Rows of the table: Dice of each training and its difference to the first one."""
    dice = next(each for each in comparisons if each.direction.metric == "Dice")
    differences = {}
    for row in text.differences.rows:
        cells = dict(zip(text.differences.header, row, strict=True))
        if cells["metric"].startswith(f"{dice.direction.title} ("):
            name = cells["method minus baseline"]
            differences[name] = [cells["mean"], cells["95 % interval"], cells["verdict"]]
    return [
        [
            training.label,
            f"{dice.summaries[method.name].mean:.4f}",
            *differences.get(method.name, ["", "", "reference"]),
            count_pairs(method.histories.values()),
        ]
        for training, method in zip(trainings, methods, strict=True)
    ]


def count_pairs(histories: Iterable[History | None]) -> str:
    """Preference pairs in each round, mean over the folds; empty for a training without rounds."""
    folds = [
        [history.logged["mining/pairs"][stage.first_epoch] for stage in history.stages[1:]]
        for history in histories
        if history is not None
    ]
    if not folds or len({len(rounds) for rounds in folds}) > 1:
        return ""
    return ", ".join(f"{sum(pairs) / len(folds):.0f}" for pairs in zip(*folds, strict=True))
