"""The display, when standard output fails."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from launch.display import Display


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    display = Display()
    for number in range(3):
        display.line("edge", f"line {number}")
        display.state("edge", "ready")


def test_character_that_the_output_does_not_have_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    Display().line("edge", "caf\xe9")
    monkeypatch.undo()
    output.seek(0)
    assert output.read() == "edge | caf?\n"
