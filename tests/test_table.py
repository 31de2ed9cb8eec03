from __future__ import annotations

from nnunetv2_mapo.table import format_table


def test_table_aligns_names_left_and_numbers_right():
    table = format_table(["stage", "Dice"], [["warm-up", "0.5"], ["final", "0.75"]])
    assert table.splitlines() == [
        "stage    Dice",
        "-------  ----",
        "warm-up   0.5",
        "final    0.75",
    ]
