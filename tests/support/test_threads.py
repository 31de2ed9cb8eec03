from __future__ import annotations

import threading

import pytest

from nnunetv2_mapo.support.threads import read_ahead


def test_items_come_as_they_are_also_none_and_false():
    assert list(read_ahead(iter([1, None, False, (), 2]))) == [1, None, False, (), 2]
    assert list(read_ahead(iter([]))) == []


def test_the_next_item_is_made_while_one_is_in_use_and_no_more():
    made, is_made = [], threading.Event()

    def make():
        for number in range(4):
            made.append(number)
            if number == 1:
                is_made.set()
            yield number

    items = read_ahead(make())
    assert next(items) == 0
    assert is_made.wait(60)  # though nobody has asked for it
    assert made == [0, 1]
    assert list(items) == [1, 2, 3]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_comes_where_its_item_would(error):
    def make():
        yield 0
        raise error

    items = read_ahead(make())
    assert next(items) == 0
    with pytest.raises(error):
        next(items)
