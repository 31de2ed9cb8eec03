"""A disk that is full."""

from __future__ import annotations

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(num_bytes: int):
    """No file can become larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
