"""The folder of the sockets on which edges are probed."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from launch.edges import edge_programs, temporary_folder


@pytest.mark.parametrize("length", [10, 40, 80, 150])
def test_sockets_can_be_bound_however_long_the_temporary_directory_is(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * length)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with temporary_folder() as folder:
        for program in edge_programs(12, [], {}, Path(folder)):
            path = program.command[program.command.index("--probe-socket") + 1]
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
