"""The display, when standard output fails."""

from __future__ import annotations

import errno
import io
import subprocess
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


def test_reader_that_reads_nothing_holds_up_nobody() -> None:
    script = (
        "import sys; from launch.display import Display; display = Display()\n"
        "for number in range(5000): display.line('edge', f'{number} ' + 'x' * 200)\n"
        "sys.stderr.write('done'); sys.stdin.read()\n"
        "display.line('edge', 'the end')"
    )
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as child:  # type: ignore[call-overload]
        assert child.stderr.read(4) == "done"
        for number in range(700):
            assert child.stdout.readline().startswith(f"edge | {number} ")
        child.stdin.close()
        lines = child.stdout.read().splitlines()
    assert child.returncode == 0
    (note,) = (number for number, line in enumerate(lines) if line.endswith("lines dropped]"))
    assert len(lines[:note]) + 700 + int(lines[note].split()[0].strip("[")) == 5000
    assert lines[note + 1] == "edge | the end"
