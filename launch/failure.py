"""The error with which a command ends."""

from __future__ import annotations


class CommandError(Exception):
    """Ends the command with its message on standard error.

    Attributes:
        status: The exit status: 1 if a request failed, 2 if the command cannot be run as given.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
