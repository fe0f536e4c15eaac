"""Makes the peers' virtual environments, which are separate from the project's."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.processes import ROOT, ProgramError

PEERS_DIRECTORY: Final = ROOT / "build" / "peers"
_MARK: Final = "installed.txt"
_INSTALL_SECONDS: Final = 900
# Errors of installations that failed in this process, by name: they are not tried again.
_FAILED: Final[dict[str, ProgramError]] = {}


def python_of(name: str, requirements: Sequence[str], folder: Path = PEERS_DIRECTORY) -> Path:
    """Returns the interpreter of the folder's NAME, and first installs the requirements.

    If the list of requirements has changed, the environment is made anew. Its `installed.txt` lists
    all installed versions.

    Raises:
        ProgramError: There is no uv, or it cannot install.
    """
    if name in _FAILED:
        raise _FAILED[name]
    directory = folder / name
    python, mark = directory / "bin" / "python", directory / _MARK
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _install(name, requirements, python, mark)
        except ProgramError as error:
            _FAILED[name] = error
            raise
    return python


def _install(name: str, requirements: Sequence[str], python: Path, mark: Path) -> None:
    directory = mark.parent
    wanted = f"# {hashlib.sha256(json.dumps(list(requirements)).encode()).hexdigest()}"
    if mark.is_file() and mark.read_text(encoding="utf-8").startswith(wanted):
        return
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise ProgramError(f"{name} needs uv: run `{sys.executable} -m pip install uv`")
    print(f"Installing {name} into {directory} ...", file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)
    _uv(uv, "venv", "--quiet", "--python", sys.executable, str(directory))
    options = ("--quiet", "--compile-bytecode", "--python", str(python))
    _uv(uv, "pip", "install", *options, *requirements)
    frozen = _uv(uv, "pip", "freeze", "--python", str(python))
    mark.write_text(f"{wanted}\n{frozen}", encoding="utf-8")


def _uv(uv: str, *arguments: str) -> str:
    """Runs uv with the index settings of pip, which uv itself does not read.

    Raises:
        ProgramError: uv failed.
    """
    variables = dict(os.environ)
    variables.pop("VIRTUAL_ENV", None)
    for theirs, ours, many in (
        ("UV_DEFAULT_INDEX", "PIP_INDEX_URL", False),
        ("UV_INDEX", "PIP_EXTRA_INDEX_URL", False),
        ("UV_FIND_LINKS", "PIP_FIND_LINKS", True),
    ):
        if value := variables.get(ours, "").strip():
            variables.setdefault(theirs, ",".join(value.split()) if many else value)
    try:
        done = subprocess.run(
            (uv, *arguments),
            env=variables,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramError(f"uv {' '.join(arguments[:2])}: no end in {error.timeout} s") from error
    if done.returncode != 0:
        raise ProgramError(f"uv {' '.join(arguments[:2])}: {done.stderr[-2000:]}")
    return done.stdout
