"""Work that goes on beside other work."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Items as they are, each made in a thread while the one before is in use; at most one waits.

    An error comes where its item would; what is made draws no random numbers.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        coming = reader.submit(_take, items)
        while taken := coming.result():
            coming = reader.submit(_take, items)
            yield from taken


def _take(items: Iterator[T]) -> tuple[T, ...]:
    """The next item; nothing at the end."""
    for item in items:
        return (item,)
    return ()
