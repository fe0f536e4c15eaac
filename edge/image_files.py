"""Pictures that clients fetch by address: files in a directory bounded in age, number and size.

Several edge processes may share one directory. All that is known of a file is in the directory
itself, so that whichever process is asked can answer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge.config import ConfigError, EdgeConfig

# By extension.
CONTENT_TYPES: Final = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
NAME_PATTERN: Final = rf"[0-9a-f]{{32}}\.(?:{'|'.join(CONTENT_TYPES)})"
_NAME: Final = re.compile(NAME_PATTERN)
_NAME_BYTES: Final = 16
_LONGEST_SWEEP_PAUSE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class File:
    """A file that was kept.

    Attributes:
        path: Where it is.
        content_type: Its MIME type.
        remaining_seconds: How much longer it will be there, unless newer files need the room.
    """

    path: Path
    content_type: str
    remaining_seconds: float


class FileStore:
    """Files in one directory; whatever else lies there is left alone.

    Args:
        config: The directory and the bounds. Without a directory it is one of this user's below
            the temporary one, made when it is needed.
    """

    def __init__(self, config: EdgeConfig) -> None:
        self._configured = config.files_dir
        self._seconds = config.files_seconds
        self._max_bytes = config.files_max_bytes
        self._max_count = config.files_max_count

    async def prepare(self) -> None:
        """Sees that files can be kept, before anybody works for them.

        Raises:
            OSError: The directory cannot be made or written, or others may read it.
        """
        await asyncio.to_thread(self._private_folder)

    async def keep(self, contents: Sequence[bytes], extension: str) -> list[str]:
        """Writes files and returns their names, which nobody can guess.

        Raises:
            OSError: They cannot be written; nothing of them is left.
        """
        return await asyncio.to_thread(self._write, contents, extension)

    async def find(self, name: str) -> File | None:
        """A file; None where there is none, or none any more."""
        return await asyncio.to_thread(self._find, name)

    def sweep(self, room: int = 0, files: int = 0) -> None:
        """Removes what is too old, and the oldest of what is too much.

        Args:
            room: Bytes that are about to come.
            files: How many files they are.
        """
        oldest = time.time() - self._seconds
        newest_first = sorted(self._files(), key=lambda f: f[1].st_mtime_ns, reverse=True)
        for path, stat in newest_first:
            room += stat.st_size
            files += 1
            if stat.st_mtime < oldest or files > self._max_count or room > self._max_bytes:
                path.unlink(missing_ok=True)

    async def sweep_forever(self) -> None:
        """Removes files when their time is over, whoever wrote them."""
        while True:
            await asyncio.to_thread(self.sweep)
            await asyncio.sleep(min(_LONGEST_SWEEP_PAUSE_SECONDS, self._seconds))

    def _write(self, contents: Sequence[bytes], extension: str) -> list[str]:
        folder = self._private_folder()
        size = sum(map(len, contents))
        if size > self._max_bytes:
            raise OSError(errno.EFBIG, "the answer is larger than files_max_bytes")
        self.sweep(size, len(contents))
        names = [f"{secrets.token_hex(_NAME_BYTES)}.{extension}" for _ in contents]
        try:
            for name, content in zip(names, contents, strict=True):
                # The name is told only when the file is whole.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with open(os.open(folder / name, flags, 0o600), "wb") as file:
                    file.write(content)
        except OSError:
            for name in names:
                (folder / name).unlink(missing_ok=True)
            raise
        return names

    def _find(self, name: str) -> File | None:
        if not _NAME.fullmatch(name):
            return None
        try:
            path = self._folder() / name
            remaining = path.stat().st_mtime + self._seconds - time.time()
        except OSError:
            return None
        if remaining <= 0:
            return None
        return File(path, CONTENT_TYPES[name.rpartition(".")[2]], remaining)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        # Another process may remove them, and the directory with them, meanwhile.
        with suppress(OSError):
            for path in self._folder().iterdir():
                with suppress(FileNotFoundError):
                    if _NAME.fullmatch(path.name):
                        yield path, path.stat()

    def _folder(self) -> Path:
        return self._configured or Path(tempfile.gettempdir()) / f"isthmus-files-{os.getuid()}"

    def _private_folder(self) -> Path:
        folder = self._folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = folder.lstat()
        if stat.st_uid != os.getuid() or stat.st_mode & 0o077 or folder.is_symlink():
            raise PermissionError(f"{folder} is open to other users; it needs mode 0700")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written")
        return folder


@asynccontextmanager
async def open_file_store(config: EdgeConfig) -> AsyncIterator[FileStore]:
    """The store of an edge, swept while the context is open.

    Raises:
        ConfigError: `files_dir` cannot be used.
    """
    store = FileStore(config)
    if config.files_dir is not None:
        try:
            await store.prepare()
        except OSError as error:
            raise ConfigError(f"files_dir: {error}") from error
    sweeping = asyncio.create_task(store.sweep_forever())
    try:
        yield store
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
