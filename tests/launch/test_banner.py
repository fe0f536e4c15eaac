"""The commands that `isthmus up` prints can be pasted, also where its environment is not active."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inference.config import ModelConfig
from launch import banner

MODELS = (ModelConfig(id="sim", engine="scripted"), ModelConfig(id="art", engine="scripted-image"))


def shown() -> list[str]:
    addresses = ("127.0.0.1:50051", "127.0.0.1:50052")
    return banner.text(
        MODELS,
        base_url="http://127.0.0.1:8000",
        grpc_addresses=addresses,
        metrics_addresses=addresses,
        with_key=False,
    ).splitlines()


def programs() -> list[str]:
    """The first word of each line with one of its commands."""
    marks = (" -c '", " -plaintext", " curl --protocol", " status ")
    return [line.split()[0] for line in shown() if any(mark in line for mark in marks)]


def test_page_is_the_first_address() -> None:
    assert shown()[2] == "  page  http://127.0.0.1:8000"


def test_programs_are_found_without_the_environment_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for folder in (tmp_path, Path(sys.prefix).parent):
        monkeypatch.chdir(folder)
        assert len(programs()) == 4
        for program in programs():
            assert shutil.which(program), program
    done = subprocess.run(
        [programs()[0], "-c", "import openai"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_programs_have_their_names_where_the_path_has_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert programs() == ["python", "grpcurl", "buf", "isthmus"]
