"""Results as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_mapo.support.table import format_table
from nnunetv2_mapo.tools.metrics import METRICS

from .arms import ARMS, control_of
from .effects import Effect, compare, count_signs, mean_of_numbers
from .plan import Cell
from .protocol import DATASETS, REGIMES
from .results import find_cells, read_metric, read_results

Results = Mapping[Cell, Mapping[str, Any]]

_UNITS = {"unit": ("mm or px", 1.0), "volume_unit": ("ml or px", 1.0)}  # and what a value is times
_HEADER = ["arm", "mean", "seeds", "- control", "95 % interval", "pairs of each round", "CPU s"]
_SIGNS = ["arm", "data sets", "ahead", "open", "behind", "data sets +/-", "seeds +/-"]


def tabulate(
    regimes: Sequence[str] | None,
    seeds: Sequence[int],
    metric: str,
    *,
    control: str | None = None,
    markdown: bool,
) -> str:
    """All tables of the results in the repository that have the metric.

    Arms are held against `control`; None: each against its own.
    """
    results = read_results(cell for cell in find_cells() if cell.seed in seeds)
    results = {cell: each for cell, each in results.items() if metric in each["metrics"]}
    unit, scale = _UNITS.get(METRICS[metric].unit, ("%", 100.0))
    parts = []
    for regime in regimes or REGIMES:
        effects: dict[str, list[Effect]] = {}
        for dataset in DATASETS:
            here = {c: r for c, r in results.items() if c[:2] == (regime, dataset)}
            if not here:
                continue
            require_same_cases(here)
            rows = [
                row_of(arm, here, metric, scale, effects, control)
                for arm in list_arms(cell for cell in here)
            ]
            title = f"{regime}, {dataset}: {metric} [{unit}]{note_protocols(here)}"
            parts.append(f"{title}\n\n{_format(_HEADER, rows, markdown)}")
        if effects:
            rows = [sign_row(arm, found, metric) for arm, found in effects.items()]
            title = f"{regime}: {metric} against the control"
            parts.append(f"{title}\n\n{_format(_SIGNS, rows, markdown)}")
    return "\n\n".join(parts) or "There is no result of these regimes and seeds."


def list_arms(cells: Any) -> list[str]:
    """Arms of the cells in the order of `ARMS`, unknown ones last."""
    there = {cell.arm for cell in cells}
    return [*(arm for arm in ARMS if arm in there), *sorted(there - set(ARMS))]


def row_of(
    arm: str,
    results: Results,
    metric: str,
    scale: float,
    effects: dict[str, list[Effect]],
    control_arm: str | None = None,
) -> list[str]:
    """Row of an arm of one regime and data set; its effect is added to `effects`."""
    own = by_seed(results, arm)
    values = scale * stack(own, sorted(own), metric)
    row = [arm, f"{mean_of_numbers(values):.2f}", str(len(own)), "", ""]
    regime = next(iter(results)).regime
    control_arm = control_arm or control_of(regime, arm)
    control = by_seed(results, control_arm)
    shared = sorted(set(own) & set(control))
    if arm != control_arm and shared:
        both = (scale * stack(each, shared, metric) for each in (own, control))
        effect = compare(*both)
        effects.setdefault(arm, []).append(effect)
        row[3] = f"{effect.mean:+.2f}"
        row[4] = f"{effect.low:+.2f} to {effect.high:+.2f}{few_seeds(shared, own)}"
    seconds = np.mean([content["seconds"]["cpu"] for content in own.values()])
    return [*row, describe_pairs(list(own.values())), f"{seconds:.0f}"]


def by_seed(results: Results, arm: str) -> dict[int, Mapping[str, Any]]:
    """Results of an arm by seed."""
    return {cell.seed: content for cell, content in results.items() if cell.arm == arm}


def stack(results: Mapping[int, Mapping[str, Any]], seeds: Sequence[int], metric: str) -> Any:
    """A metric of these seeds, shape `(seeds, cases)`."""
    return np.stack([read_metric(dict(results[seed]), metric) for seed in seeds])


def require_same_cases(results: Results) -> None:
    """Refuse results of one data set that were evaluated on different cases.

    Raises:
        ValueError: Some were.
    """
    if len({tuple(content["cases"]) for content in results.values()}) > 1:
        names = ", ".join(cell.name for cell in results)
        message = f"different validation cases in {names}: delete those of the old protocol"
        raise ValueError(message)


def few_seeds(shared: Sequence[int], own: Mapping[int, Any]) -> str:
    """Note where the interval is of cases alone, or of fewer seeds than the mean."""
    if len(shared) == 1:
        return " (1 seed)"
    return f" ({len(shared)} seeds)" if len(shared) < len(own) else ""


def describe_pairs(contents: Sequence[Mapping[str, Any]]) -> str:
    """Mean number of pairs of each round over the seeds, of how many samples."""
    rounds = [each["rounds"] for each in contents if each["rounds"]]
    if not rounds:
        return ""
    pairs = [
        f"{np.mean([each['pairs'] for each in number]):.0f}"
        for number in zip(*rounds, strict=False)
    ]
    return f"{' '.join(pairs)} of {rounds[0][0]['samples']}"


def note_protocols(results: Results) -> str:
    """Warning where cells of different protocols stand side by side."""
    number = len({content["protocol"] for content in results.values()})
    return f" WARNING: {number} protocols are mixed" if number > 1 else ""


def sign_row(arm: str, effects: Sequence[Effect], metric: str) -> list[str]:
    """Row of an arm in the table of signs."""
    signs = count_signs(effects, higher_is_better=bool(METRICS[metric].higher_is_better))
    return [
        arm,
        str(len(effects)),
        *map(str, signs[:3]),
        f"{signs.datasets_better}/{signs.datasets_worse}",
        f"{signs.seeds_better}/{signs.seeds_worse}",
    ]


def _format(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    if not markdown:
        return format_table(header, rows)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
