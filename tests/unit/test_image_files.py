"""The directory of images that clients fetch by URL: what it never serves, and what it survives."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import pytest

from edge import image_files
from edge.config import EdgeConfig
from edge.image_files import FileStore, open_file_store

NAME = "0" * 32 + ".png"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default directory, in a temporary directory of the test; not made yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"isthmus-files-{os.getuid()}"


async def test_default_directory_of_another_user_is_not_read(folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_text("secret")
    # Anybody may open it, so anybody may have put the link there.
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / NAME).symlink_to(secret)
    assert await FileStore(EdgeConfig()).find(NAME) is None


@pytest.mark.parametrize("what", ["link", "directory"])
async def test_only_regular_files_are_served(folder: Path, what: str) -> None:
    folder.mkdir(mode=0o700)
    (folder / "target").write_text("x")
    if what == "link":
        (folder / NAME).symlink_to(folder / "target")
    else:
        (folder / NAME).mkdir()
    assert await FileStore(EdgeConfig()).find(NAME) is None


async def test_link_in_place_of_the_default_directory_is_not_followed(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir(mode=0o700)
    (other / NAME).write_bytes(b"x")
    folder.symlink_to(other)
    assert await FileStore(EdgeConfig()).find(NAME) is None
    with pytest.raises(PermissionError):
        await FileStore(EdgeConfig()).prepare()


def test_nothing_is_removed_through_a_link_in_place_of_the_default_directory(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir(mode=0o700)
    (other / NAME).write_bytes(b"x")
    os.utime(other / NAME, (1, 1))
    folder.symlink_to(other)
    FileStore(EdgeConfig()).sweep()
    assert (other / NAME).exists()


async def test_sweeping_goes_on_after_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_MAX_SWEEP_PAUSE_SECONDS", 0.02)
    sweep, failures = FileStore.sweep, 2

    def failing(store: FileStore, new_bytes: int = 0, new_files: int = 0) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("injected")
        sweep(store, new_bytes, new_files)

    monkeypatch.setattr(FileStore, "sweep", failing)
    folder.mkdir(mode=0o700)
    (folder / ("1" * 32 + ".png")).mkdir()  # A directory with a file's name.
    old = folder / NAME
    old.write_bytes(b"x")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    async with open_file_store(EdgeConfig(files_seconds=3600)):
        async with asyncio.timeout(10):
            while old.exists():
                await asyncio.sleep(0.01)
