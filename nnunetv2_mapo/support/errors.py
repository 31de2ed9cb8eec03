"""Errors that more than one room raises; the message says what is wrong and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Data that cannot be trained on; the message says what is wrong, what is valid, what to do."""


class CommandError(RuntimeError):
    """What went wrong and what to do, for the user of the command line."""
