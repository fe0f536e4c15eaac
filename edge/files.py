"""Pictures that clients fetch by address: files in a directory bounded in age, number and size.

Several edge processes may share one directory. All that is known of a file is in the directory
itself, so that whichever process is asked can answer.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge.config import ConfigError, EdgeConfig

# By extension.
CONTENT_TYPES: Final = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
NAME_PATTERN: Final = rf"[0-9a-f]{{32}}\.(?:{'|'.join(CONTENT_TYPES)})"
_NAME: Final = re.compile(NAME_PATTERN)
_NAME_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class File:
    """A file that was kept.

    Attributes:
        data: Its content.
        content_type: Its MIME type.
        remaining_seconds: How much longer it will be there, unless newer files need the room.
    """

    data: bytes
    content_type: str
    remaining_seconds: float


class FileStore:
    """Files in one directory; whatever else lies there is left alone.

    Args:
        folder: Exists and is nobody else's.
        config: The bounds.
    """

    def __init__(self, folder: Path, config: EdgeConfig) -> None:
        self._folder = folder
        self._seconds = config.files_seconds
        self._max_bytes = config.files_max_bytes
        self._max_count = config.files_max_count

    async def keep(self, contents: Sequence[bytes], extension: str) -> list[str]:
        """Writes files and returns their names, which nobody can guess.

        Raises:
            OSError: They cannot be written.
        """
        names = await asyncio.to_thread(self._write, contents, extension)
        loop = asyncio.get_running_loop()
        # The second sees to it that they are past their time by then.
        loop.call_later(self._seconds + 1, loop.run_in_executor, None, self.sweep)
        return names

    async def read(self, name: str) -> File | None:
        """A file; None where there is none, or none any more."""
        return await asyncio.to_thread(self._read, name)

    def sweep(self) -> None:
        """Removes what is too old, and the oldest of what is too much."""
        size = 0
        oldest = time.time() - self._seconds
        newest_first = sorted(self._files(), key=lambda f: f[1].st_mtime_ns, reverse=True)
        for count, (path, stat) in enumerate(newest_first, start=1):
            size += stat.st_size
            if stat.st_mtime < oldest or count > self._max_count or size > self._max_bytes:
                path.unlink(missing_ok=True)

    def _write(self, contents: Sequence[bytes], extension: str) -> list[str]:
        names = []
        for content in contents:
            name = f"{secrets.token_hex(_NAME_BYTES)}.{extension}"
            # The name is told only when the file is whole.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(self._folder / name, flags, 0o600), "wb") as file:
                file.write(content)
            names.append(name)
        self.sweep()
        return names

    def _read(self, name: str) -> File | None:
        if not _NAME.fullmatch(name):
            return None
        try:
            with (self._folder / name).open("rb") as file:
                remaining = os.fstat(file.fileno()).st_mtime + self._seconds - time.time()
                if remaining <= 0:
                    return None
                return File(file.read(), CONTENT_TYPES[name.rpartition(".")[2]], remaining)
        except FileNotFoundError:
            return None

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        # Another process may remove them, and the directory with them, meanwhile.
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                with suppress(FileNotFoundError):
                    if _NAME.fullmatch(path.name):
                        yield path, path.stat()


@contextmanager
def open_file_store(config: EdgeConfig) -> Iterator[FileStore]:
    """The store of an edge: in `files_dir`, else in a directory that ends with the context.

    Raises:
        ConfigError: The directory cannot be made, or other users could read it.
    """
    if config.files_dir is None:
        with tempfile.TemporaryDirectory(prefix="isthmus-files-") as folder:
            yield FileStore(Path(folder), config)
        return
    _make_private(config.files_dir)
    store = FileStore(config.files_dir, config)
    store.sweep()
    try:
        yield store
    finally:
        store.sweep()


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = folder.stat()
    except OSError as error:
        raise ConfigError(f"files_dir: cannot make {folder}") from error
    if stat.st_uid != os.getuid() or stat.st_mode & 0o077:
        raise ConfigError(f"files_dir: {folder} is open to other users; it needs mode 0700")
