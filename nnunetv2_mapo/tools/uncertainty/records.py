"""What is written about the uncertainty of cases: `uncertainty.json` and `uncertainty.csv`."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_mapo import __version__
from nnunetv2_mapo.support.files import write_atomically
from nnunetv2_mapo.tools.uncertainty.calibration import area_under_risk_coverage, smallest_area
from nnunetv2_mapo.tools.uncertainty.scores import Scores
from nnunetv2_mapo.tools.uncertainty.uncertainty import MapSummary

UNCERTAINTY_JSON, UNCERTAINTY_CSV = "uncertainty.json", "uncertainty.csv"
_COLUMNS = (*MapSummary._fields, *Scores._fields)


class CaseOrder(NamedTuple):
    """Does the mean entropy order the cases? Areas under risk-coverage curves, risk = 1 − Dice.

    Attributes:
        aurc: Of the cases ordered by their mean entropy, those without any segmented foreground
            as the most uncertain ones.
        aurc_random: Of a random order: the mean of 1 − Dice.
        aurc_best: Of the cases ordered by their Dice.
    """

    aurc: float
    aurc_random: float
    aurc_best: float


@dataclass
class Records:
    """What is known of the cases so far; on the disk after each one.

    Attributes:
        folder: Where the maps are.
        settings: What the maps depend on; maps of other settings are other maps.
        model: Where the model is.
        cases: Identifier -> name of a number -> number.
    """

    folder: Path
    settings: dict[str, Any]
    model: dict[str, Any]
    cases: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, identifier: str, summary: MapSummary, scores: Scores | None) -> None:
        """Add a case and write both files, each complete or not at all.

        Raises:
            WriteError: The disk is full.
        """
        self.cases[identifier] = summary._asdict() | (scores._asdict() if scores else {})
        self.write()

    def write(self) -> None:
        """Write both files."""
        packages = ("nnunetv2", "torch", "numpy")
        content = {
            "settings": self.settings,
            "model": self.model,
            "versions": {"nnunetv2-mapo": __version__, **{p: version(p) for p in packages}},
            "mean": _without_nan(self.mean()),
            "order_of_cases": _without_nan(self.order()._asdict()) if self.has_scores else None,
            "cases": {name: _without_nan(self.cases[name]) for name in sorted(self.cases)},
        }
        write_atomically(self.folder / UNCERTAINTY_CSV, self._format_csv().encode())
        write_atomically(self.folder / UNCERTAINTY_JSON, json.dumps(content, indent=1).encode())

    @property
    def has_scores(self) -> bool:
        """Whether every case, and there is one, has scores."""
        return bool(self.cases) and all("dice" in case for case in self.cases.values())

    def mean(self) -> dict[str, float]:
        """Mean of each number over the cases that have it."""
        means = {}
        for column in _COLUMNS:
            values = np.array([case.get(column, math.nan) for case in self.cases.values()])
            if not np.isnan(values).all():
                means[column] = float(np.nanmean(values))
        return means

    def rank(self) -> list[str]:
        """Cases, the most uncertain first: those without foreground, then by mean entropy."""
        return sorted(self.cases, key=self._uncertainty_of, reverse=True)

    def order(self) -> CaseOrder:
        """How well their uncertainty orders the cases, which must have scores; NaN is left out."""
        judged = [name for name, case in self.cases.items() if not math.isnan(case["dice"])]
        risk = np.array([1 - self.cases[name]["dice"] for name in judged])
        uncertainty = np.array([self._uncertainty_of(name) for name in judged])
        return CaseOrder(
            area_under_risk_coverage(uncertainty, risk),
            float(risk.mean()) if judged else math.nan,
            smallest_area(risk),
        )

    def _uncertainty_of(self, name: str) -> float:
        """Mean entropy; above all others' where nothing is segmented: there it is on its own scale.

        All is then missed, or all is well, and which of both no mean over the image tells.
        """
        case = self.cases[name]
        return case["mean_entropy"] if case["num_segmented"] else sys.float_info.max

    def _format_csv(self) -> str:
        text = io.StringIO()
        columns = _COLUMNS if self.has_scores else MapSummary._fields
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", *columns])
        for name in sorted(self.cases):
            values = _without_nan(self.cases[name])
            writer.writerow([name, *(values[column] for column in columns)])
        return text.getvalue()


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def read_cases(folder: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Cases of an earlier run in a folder; none if it has left no file.

    Args:
        folder: Where its maps are.
        settings: Of this run.

    Raises:
        ValueError: Its file is damaged, or its settings are others.
    """
    path = folder / UNCERTAINTY_JSON
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        then, cases = content["settings"], content["cases"]
        changed = [
            f"{k}: {then.get(k)} then, {settings[k]} now"
            for k in settings
            if then.get(k) != settings[k]
        ]
        cases = {
            name: {key: math.nan if value is None else value for key, value in case.items()}
            for name, case in cases.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} is damaged ({type(error).__name__}: {error})."
        raise ValueError(message) from error
    if changed:
        message = f"The maps in {folder} are of other settings: {'; '.join(changed)}."
        raise ValueError(message)
    return cases
