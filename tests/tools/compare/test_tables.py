from __future__ import annotations

import pandas as pd
import pytest

from nnunetv2_mapo.tools.compare.tables import conclude


@pytest.mark.parametrize(
    ("num_cases", "num_ties", "num_tests", "expected"),
    [
        (1, 0, 1, "1 case: too few to conclude anything: whatever the differences, p cannot fall"),
        (5, 0, 1, "p cannot fall below 0.062, times 1 for as many tests; it must"),  # 2 / 2**5
        # 2 / 2**6 = 0.031 would do for one test; twice that is 0.0625.
        (6, 0, 2, "p cannot fall below 0.031, times 2 for as many tests; it must be below 0.05."),
        (6, 0, 1, "6 cases: too few to conclude, read the result as a hint."),
        (19, 0, 7, "19 cases: too few to conclude, read the result as a hint."),
        (20, 0, 7, "20 cases: enough for the test"),
        (30, 26, 1, "30 cases, of which 4 differ: too few to conclude anything"),
        (30, 11, 1, "30 cases, of which 19 differ: too few to conclude, read the result as"),
        (30, 10, 1, "30 cases, of which 20 differ: enough for the test"),
    ],
)
def test_number_of_cases_that_differ_decides_what_can_be_concluded(
    num_cases, num_ties, num_tests, expected
):
    rows = [{"p": 0.5, "wins": num_cases - num_ties, "ties": num_ties, "losses": 0}] * num_tests
    tied = {"p": float("nan"), "wins": 0, "ties": num_cases, "losses": 0}  # counts for nothing
    assert expected in conclude(pd.DataFrame([tied, *rows]))
