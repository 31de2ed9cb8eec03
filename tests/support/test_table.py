from __future__ import annotations

from nnunetv2_mapo.support.table import format_table, join_names, list_some


def test_table_aligns_names_left_and_numbers_right():
    table = format_table(["stage", "Dice"], [["warm-up", "0.5"], ["final", "0.75"]])
    assert table.splitlines() == [
        "stage    Dice",
        "-------  ----",
        "warm-up   0.5",
        "final    0.75",
    ]


def test_of_many_names_ten_are_listed():
    names = list("abcdefghijkl")
    assert list_some(names[:10]) == "a, b, c, d, e, f, g, h, i, j"
    assert list_some(names) == "a, b, c, d, e, f, g, h, i, j and 2 more"


def test_names_that_differ_in_numbers_become_one_pattern_unless_it_fits_other_sites():
    names = ["blocks.0.mlp.2", "blocks.11.mlp.2", "head"]
    assert join_names(names, names) == ["blocks.*.mlp.*", "head"]
    assert join_names(names, [*names, "blocks.3.mlp.0"]) == names
