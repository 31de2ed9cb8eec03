"""What a network's candidates say before any training: rates it stands, pairs of two candidates.

Pure numbers: who mines the candidates and who shows them is in `preview`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunetv2_mapo.method.config import MAPOConfig

LEAST_DICE_SHARE = 0.75  # of the plain median Dice: below it, a rate's candidates are rubbish
ENOUGH_PAIRS = 0.5  # share of the samples; both are rules of thumb, not measured
LEAST_TAU = 0.02  # smaller gaps hurt a model that is already good, see docs/method.md


class Settings(NamedTuple):
    """Settings that decide which samples have a pair of two candidates (`pair="case"`).

    Attributes:
        rates: Dropout rate of each candidate.
        tau: Least Dice gap of a pair.
    """

    rates: tuple[float, ...]
    tau: float


@dataclass(frozen=True)
class CandidateDice:
    """Dice of the candidates of N training samples with foreground at K rates.

    Attributes:
        rates: Dropout rates that were looked at, increasing, the first 0, K of them.
        dice: Dice of each candidate, shape `(N, K)`.
    """

    rates: tuple[float, ...]
    dice: NDArray[np.float64]

    def quartiles(self) -> NDArray[np.float64]:
        """Lower quartile, median and upper quartile of the Dice at each rate, shape `(3, K)`."""
        result: NDArray[np.float64] = np.quantile(self.dice, (0.25, 0.5, 0.75), axis=0)
        return result

    def gaps(self, rates: Sequence[float]) -> NDArray[np.float64]:
        """Dice gap between the best and the worst candidate of each sample, shape `(N,)`.

        Args:
            rates: Wanted rates; each is stood for by the nearest that was looked at.
        """
        distances = np.abs(np.subtract.outer(np.array(self.rates), np.array(rates)))
        gaps: NDArray[np.float64] = np.ptp(self.dice[:, distances.argmin(0)], axis=1)
        return gaps

    def count_pairs(self, settings: Settings) -> int:
        """Samples that would have a pair."""
        return int((self.gaps(settings.rates) >= settings.tau).sum())

    def share_with_pair(self, settings: Settings) -> float:
        """Share of the samples that would have a pair."""
        return self.count_pairs(settings) / len(self.dice)

    def rate_at_fall(self, dice_fall: float) -> float:
        """Rate at which this share of the median Dice is lost, between those looked at by a line.

        The largest rate looked at where it never falls so far.
        """
        median = self.quartiles()[1]
        fall = np.maximum.accumulate(1 - median / max(median[0], 1e-9))
        if fall[-1] <= dice_fall:
            return self.rates[-1]
        above = int((fall > dice_fall).argmax())
        steps = (fall[above - 1], fall[above]), (self.rates[above - 1], self.rates[above])
        return float(np.interp(dice_fall, *steps))

    def largest_useful_rate(self) -> float:
        """Largest rate up to which the median Dice stays a fair share of the plain one.

        The smallest rate above 0 where there is none.
        """
        median = self.quartiles()[1]
        is_useful = median >= LEAST_DICE_SHARE * median[0]
        num_useful = len(is_useful) if is_useful.all() else int(is_useful.argmin())
        return self.rates[max(num_useful - 1, 1)]


def recommend(found: CandidateDice, default: Settings) -> Settings:
    """Settings for this data set.

    The default where it would do: half of the samples have a pair, and even its largest rate
    leaves a useful candidate. Else as many rates as the default has, evenly spaced up to the
    largest useful one, and the default τ, or the largest one, in steps of 0.01 and not below
    `LEAST_TAU`, at which half of the samples have a pair.

    Args:
        found: What was looked at.
        default: Settings of the trainer as it is shipped, for this dimension.
    """
    largest = found.largest_useful_rate()
    if default.rates[-1] <= largest and found.share_with_pair(default) >= ENOUGH_PAIRS:
        return default
    rates = np.linspace(0, largest, len(default.rates)).round(4).tolist()
    gaps = np.sort(found.gaps(rates))[::-1]
    gap = gaps[math.ceil(ENOUGH_PAIRS * len(gaps)) - 1]  # so many samples reach it
    tau = min(default.tau, max(LEAST_TAU, math.floor(gap * 100) / 100))
    return Settings(tuple(rates), tau)


def format_trainer(settings: Settings, num_dimensions: int, granularity: str) -> str:
    """Python file with a trainer of these settings.

    Args:
        settings: Rates and τ.
        num_dimensions: 2 or 3, of the configuration.
        granularity: What dropout drops, as the candidates were made.
    """
    values: dict[str, Any] = {"pair": "case", "rates": "fixed"}
    values |= {f"rates_{num_dimensions}d": settings.rates, "tau": settings.tau}
    if granularity != MAPOConfig().granularity:
        values["granularity"] = granularity
    lines = "".join(f"        {name}={value!r},\n" for name, value in values.items())
    return (
        "from nnunetv2_mapo import MAPOConfig, nnUNetTrainer_MAPO\n\n\n"
        "class nnUNetTrainer_MAPO_Previewed(nnUNetTrainer_MAPO):\n"
        f"    mapo = MAPOConfig(\n{lines}    )\n"
    )
