"""From the metrics of every class to the one value of a case that methods are compared by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nnunetv2_mapo.tools.compare.comparison import Direction, MetricComparison, check_cases, compare
from nnunetv2_mapo.tools.compare.methods import ComparisonError, Method
from nnunetv2_mapo.tools.evaluate.evaluation import Evaluation, title_of
from nnunetv2_mapo.tools.metrics import METRICS


def list_directions(evaluation: Evaluation, wanted: Sequence[str] | None = None) -> list[Direction]:
    """Metrics of an evaluation in which methods can be better or worse.

    Args:
        evaluation: Of any of the methods.
        wanted: Names of `METRICS`; None: all that are there.

    Raises:
        ComparisonError: A wanted one is not there.
    """
    first = next(iter(next(iter(evaluation.values.values())).values()))
    there = [name for name in METRICS if name in first]
    if missing := [name for name in wanted or () if name not in there]:
        message = (
            f"There is no metric {', '.join(missing)} in what was evaluated: {', '.join(there)}. "
            "nnUNetv2_mapo evaluate makes the others."
        )
        raise ComparisonError(message)
    return [_direct(name, evaluation.provenance) for name in there if name in (wanted or there)]


def _direct(name: str, provenance: dict[str, str]) -> Direction:
    higher_is_better = METRICS[name].higher_is_better
    title = title_of(name, provenance)
    if higher_is_better is None:  # its sign tells the direction: the size is what can be better
        return Direction(name, f"absolute {title}", higher_is_better=False)
    return Direction(name, title, higher_is_better)


def average_classes(
    evaluations: Mapping[str, Evaluation], metric: str
) -> dict[str, dict[str, float]]:
    """Value of each case of each method: mean over the same classes for all of them.

    A class that is NaN for one method alone has two empty masks there, which agree: it counts with
    the best value, or the methods that find something in the empty reference would not be charged
    for it. A class that no method has a value of is left out.

    Args:
        evaluations: Metrics of the same cases and classes by each method.
        metric: Name of `METRICS`; of signed ones, the size counts.

    Returns:
        Method -> case -> value; NaN for a case in which no class has a value.
    """
    best = 1.0 if METRICS[metric].higher_is_better else 0.0
    cases: dict[str, dict[str, float]] = {method: {} for method in evaluations}
    for case, classes in next(iter(evaluations.values())).values.items():
        values = np.array(
            [[each.values[case][key][metric] for key in classes] for each in evaluations.values()]
        )  # (methods, classes)
        undefined = np.isnan(values)
        # This one is not defined without a reference, whatever the prediction.
        left_out = (undefined.any if metric == "relative_volume_error" else undefined.all)(axis=0)
        if METRICS[metric].higher_is_better is None:
            values = np.abs(values)
        values = np.where(undefined, best, values)[:, ~left_out]
        for its_cases, its_values in zip(cases.values(), values, strict=True):
            its_cases[case] = float(its_values.mean()) if len(its_values) else math.nan
    return cases


def compare_methods(
    methods: Sequence[Method], wanted: Sequence[str] | None = None
) -> list[MetricComparison]:
    """Compare methods with the first one.

    Args:
        methods: Two or more.
        wanted: Names of `METRICS`; None: all that are there.

    Raises:
        ComparisonError: The methods do not have the same cases, or a metric is not there.
    """
    directions = list_directions(methods[0].evaluation, wanted)
    evaluations = {method.name: method.evaluation for method in methods}
    try:
        check_cases({name: each.values for name, each in evaluations.items()})
        means = {each.metric: average_classes(evaluations, each.metric) for each in directions}
        values = {
            name: {metric: cases[name] for metric, cases in means.items()} for name in evaluations
        }
        return compare(values, directions)
    except ValueError as error:
        raise ComparisonError(str(error)) from error
