"""The look of our pictures, whatever else the process has told matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib's own settings inside a `with` block, or in a function it decorates.

    nnU-Net sets seaborn's for the whole process, with letters of two and a half times the size.
    Ticks and layout ask for settings when a figure is saved, so that belongs inside as well.
    """
    import matplotlib.style

    with matplotlib.style.context("default"):
        yield
