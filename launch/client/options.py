"""Values of the commands' options, and texts from a pipe."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from launch.failure import CommandError

_UINT32_MAX: Final = 2**32 - 1
_INT64_MAX: Final = 2**63 - 1


def utf8(text: str) -> str:
    """Checks a text, for argparse: Python passes on bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("not UTF-8") from error
    return text


def count(text: str) -> int:
    """Parses a number of at least 0 that fits into 32 bits, for argparse."""
    if not text.isascii() or not text.isdecimal() or int(text) > _UINT32_MAX:
        raise argparse.ArgumentTypeError(f"must be a whole number up to {_UINT32_MAX}")
    return int(text)


def seed(text: str) -> int:
    """Parses a number that fits into 64 bits, for argparse."""
    value = int(text)
    if not -_INT64_MAX <= value <= _INT64_MAX:
        raise argparse.ArgumentTypeError(f"must be a whole number up to {_INT64_MAX}")
    return value


def piped() -> str:
    """All of standard input; "" at a terminal.

    Raises:
        CommandError: It is not UTF-8.
    """
    if sys.stdin.isatty():
        return ""
    try:
        return utf8(sys.stdin.read())
    except (UnicodeDecodeError, argparse.ArgumentTypeError) as error:
        raise CommandError("Standard input is not UTF-8.", 2) from error
