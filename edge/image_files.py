"""Images that clients fetch by URL: files in a directory with bounds of age, number and size.

Several edge processes may share one directory. No process keeps an index: names, ages and sizes
are read from the directory, so each process can serve and remove the files of the others.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Final

from edge.config import EdgeConfig
from keys import ConfigError

log = logging.getLogger(__name__)

# MIME types by file extension.
CONTENT_TYPES: Final = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
# A name is the permission to read its file, so it is 128 random bits.
_NAME_BYTES: Final = 16
NAME_PATTERN: Final = rf"[0-9a-f]{{32}}\.(?:{'|'.join(CONTENT_TYPES)})"
_NAME: Final = re.compile(NAME_PATTERN)
# Longest time between two sweeps, and so for how long an expired file stays on disk.
_MAX_SWEEP_PAUSE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class File:
    """A stored file.

    Attributes:
        path: Its path.
        content_type: Its MIME type.
        remaining_seconds: Time until it expires; newer files may push it out earlier.
    """

    path: Path
    content_type: str
    remaining_seconds: float


class FileStore:
    """The files in one directory; files with other names are never touched.

    Args:
        config: `files_dir` and the bounds `files_seconds`, `files_max_bytes`, `files_max_count`.
            Without `files_dir`, a directory of this user below the temporary one is made when the
            first file is kept.
    """

    def __init__(self, config: EdgeConfig) -> None:
        self._configured = config.files_dir
        self._seconds = config.files_seconds
        self._max_bytes = config.files_max_bytes
        self._max_count = config.files_max_count
        self.count = self.bytes = 0

    async def prepare(self) -> None:
        """Checks that files can be kept, before an engine makes images for nothing.

        Raises:
            OSError: The directory cannot be made or written, or other users can open it.
        """
        await asyncio.to_thread(self._private_folder)

    async def keep(self, contents: Sequence[bytes], extension: str) -> list[str]:
        """Writes files and removes old ones to make room.

        Args:
            contents: The bytes of each file.
            extension: Their extension, a key of CONTENT_TYPES.

        Returns:
            Their random names, in the same order.

        Raises:
            OSError: They cannot be written or exceed `files_max_bytes`; none of them is kept.
        """
        return await asyncio.to_thread(self._write, contents, extension)

    async def find(self, name: str) -> File | None:
        """The file of a name; None if it never existed, has expired or was removed."""
        return await asyncio.to_thread(self._find, name)

    def sweep(self, new_bytes: int = 0, new_files: int = 0) -> None:
        """Removes expired files, and the oldest ones beyond the bounds.

        Args:
            new_bytes: Total size of files that are about to be written.
            new_files: Their number.
        """
        oldest = time.time() - self._seconds
        newest_first = sorted(self._files(), key=lambda f: f[1].st_mtime_ns, reverse=True)
        total_bytes, count = new_bytes, new_files
        self.count, self.bytes = new_files, new_bytes
        for path, stat in newest_first:
            total_bytes += stat.st_size
            count += 1
            if stat.st_mtime < oldest or count > self._max_count or total_bytes > self._max_bytes:
                with suppress(OSError):  # Another process may have removed it.
                    path.unlink()
            else:
                self.count += 1
                self.bytes += stat.st_size

    async def sweep_forever(self) -> None:
        """Sweeps every minute, or every `files_seconds` if that is shorter."""
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except Exception:
                log.exception("cannot remove old images")
            await asyncio.sleep(min(_MAX_SWEEP_PAUSE_SECONDS, self._seconds))

    def _write(self, contents: Sequence[bytes], extension: str) -> list[str]:
        folder = self._private_folder()
        size = sum(map(len, contents))
        if size > self._max_bytes:
            raise OSError(errno.EFBIG, "the images of one response exceed files_max_bytes")
        self.sweep(size, len(contents))
        names = [f"{secrets.token_hex(_NAME_BYTES)}.{extension}" for _ in contents]
        try:
            for name, content in zip(names, contents, strict=True):
                # Clients learn the name only after the whole file is written.
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
            folder = self._folder()
            path = folder / name
            stat = path.lstat()
            # In a directory of somebody else a name may be a link to any file of this user.
            if not _is_private(folder) or not S_ISREG(stat.st_mode):
                return None
        except OSError:
            return None
        remaining = stat.st_mtime + self._seconds - time.time()
        if remaining <= 0:
            return None
        return File(path, CONTENT_TYPES[name.rpartition(".")[2]], remaining)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        # Another process may remove the files, or the whole directory, at the same time.
        with suppress(OSError):
            folder = self._folder()
            if not _is_private(folder):
                return  # Perhaps a link to files that have longer to live.
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    if _NAME.fullmatch(path.name) and S_ISREG((stat := path.lstat()).st_mode):
                        yield path, stat

    def _folder(self) -> Path:
        return self._configured or Path(tempfile.gettempdir()) / f"isthmus-files-{os.getuid()}"

    def _private_folder(self) -> Path:
        folder = self._folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            raise PermissionError(f"{folder} is open to other users; it needs mode 0700")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written")
        return folder


def _is_private(folder: Path) -> bool:
    """Whether a path is a directory, not a link, that only this user can open."""
    stat = folder.lstat()
    return S_ISDIR(stat.st_mode) and stat.st_uid == os.getuid() and not stat.st_mode & 0o077


@asynccontextmanager
async def open_file_store(config: EdgeConfig) -> AsyncIterator[FileStore]:
    """Yields the store of an edge process and sweeps it while the context is open.

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
