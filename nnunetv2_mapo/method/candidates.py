"""What the candidates of a sample differ in, and the values of arXiv:2512.15009."""

from __future__ import annotations

from typing import NamedTuple

RATES_2D = tuple(round(0.005 * step, 3) for step in range(11))
RATES_3D = tuple(round(0.05 * step, 2) for step in range(7))
LIGHT_RATES = tuple(round(0.01 * step, 2) for step in range(7))  # not the paper's
THRESHOLDS = (0.5, *(round(0.375 + 0.025 * step, 3) for step in range(11) if step != 5))
NOISE_SIGMAS = tuple(round(0.005 * step, 3) for step in range(11))


class Candidates(NamedTuple):
    """What the candidates of a sample differ in.

    Attributes:
        label: In words, such as "dropout rate".
        setting: Field of `MAPOConfig` that holds the values.
        values: One of each candidate; the first is that of the plain prediction.
    """

    label: str
    setting: str
    values: tuple[float, ...]
