from __future__ import annotations

from nnunetv2_mapo.support.table import (
    WIDTH,
    format_table,
    join_names,
    list_some,
    name_blocks,
    stack_table,
)


def test_table_aligns_names_left_and_numbers_right():
    table = format_table(["stage", "Dice"], [["warm-up", "0.5"], ["final", "0.75"]])
    assert table.splitlines() == [
        "stage    Dice",
        "-------  ----",
        "warm-up   0.5",
        "final    0.75",
    ]


def test_columns_that_do_not_fit_into_a_line_go_on_below():
    header, row = ["class", *(f"metric {n} [mm]" for n in range(9))], ["1", *map(str, range(9))]
    first, second = stack_table(header, [row]).split("\n\n")
    for table, cells in ((first, header[:7]), (second, ["class", *header[7:]])):
        assert all(len(line) <= WIDTH for line in table.splitlines())
        assert table.splitlines()[0].split("  ") == cells
    assert second.splitlines()[-1].split() == ["1", "6", "7", "8"]
    assert stack_table(header[:3], [row[:3]]) == format_table(header[:3], [row[:3]])


def test_of_many_names_ten_are_listed():
    names = list("abcdefghijkl")
    assert list_some(names[:10]) == "a, b, c, d, e, f, g, h, i, j"
    assert list_some(names) == "a, b, c, d, e, f, g, h, i, j and 2 more"


def test_names_that_differ_in_numbers_become_one_pattern_unless_it_fits_other_sites():
    names = ["blocks.0.mlp.2", "blocks.11.mlp.2", "head"]
    assert join_names(names, names) == ["blocks.*.mlp.*", "head"]
    assert join_names(names, [*names, "blocks.3.mlp.0"]) == names


def test_names_are_grouped_by_the_largest_block_that_holds_no_other():
    names = ["down.0.q", "down.0.k", "down.1.q", "up.fuse.conv", "up.fuse.norm", "up.last", "head"]
    assert name_blocks(names, ["down.1.k", "up.first"]) == [
        "down.0",
        "down.1.q",
        "up.fuse",
        "up.last",
        "head",
    ]
    assert name_blocks(names[:4], []) == ["down", "up.fuse.conv"]
