"""What a user can mend: the message says what is wrong, what is valid and what to do."""

from __future__ import annotations


class MAPOError(Exception):
    """Base of the errors that are explained on the command line, without a traceback."""


class InputError(MAPOError, ValueError):
    """Data, settings or files that cannot be used."""


class CommandError(MAPOError, RuntimeError):
    """What a command cannot do."""
