"""The files that a model directory may hold: weights as safetensors, and data; no code, no pickles.

The libraries that load models have run code in the model's directory although `trust_remote_code`
was off (CVE-2026-68770, CVE-2025-66448), so the directory is checked before one of them opens it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from keys import ConfigError

_CODE: Final = frozenset((".py", ".pyc", ".so"))
_PICKLES: Final = frozenset((".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"))
_MODULES_FILE: Final = "modules.json"
_PIPELINE_FILE: Final = "model_index.json"
# diffusers imports each library that a pipeline's index names. stable_diffusion is a part of
# diffusers that has the safety checker of many pipelines.
_PIPELINE_LIBRARIES: Final = frozenset(("diffusers", "transformers", "stable_diffusion", None))
# Bytes from the beginning of each file that the fingerprint covers.
_HASHED_BYTES: Final = 1 << 20


def check_model_directory(directory: Path) -> None:
    """Raises ConfigError for a directory that could run code when the model is loaded:

    one that holds code or pickles, refers to code elsewhere, or links outside itself.
    """
    # In a hub cache, the files of a snapshot are links to `blobs` beside `snapshots`.
    roots = (directory.resolve(), directory.resolve().parent.parent / "blobs")
    for path in _files(directory):
        name = path.relative_to(directory)
        if path.suffix.lower() in _CODE:
            raise ConfigError(f"{directory}: {name} is code; only weights and data are loaded")
        if path.suffix.lower() in _PICKLES:
            raise ConfigError(f"{directory}: {name} may be a pickle; only safetensors are loaded")
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise ConfigError(f"{directory}: {name} links outside the directory")
        if path.suffix.lower() == ".json":
            _check_json(directory, path)


def fingerprint(directory: Path, *engine: object) -> str:
    """An id ("fp_...") of weights and engine settings, the same after a restart.

    It is a hash of the files' names, sizes and first bytes, and of further values that change the
    output, such as the data type.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in _files(directory) if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(directory)} {path.stat().st_size} ".encode())
            digest.update(file.read(_HASHED_BYTES))
    digest.update(repr(engine).encode())
    return f"fp_{digest.hexdigest()[:10]}"


def newest_mtime(directory: Path) -> int:
    """The modification time of a model's newest file, in seconds since the Unix epoch."""
    return int(max(path.stat().st_mtime for path in _files(directory)))


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file() or path.is_symlink())


def _check_json(directory: Path, path: Path) -> None:
    name = path.relative_to(directory)
    auto_map_found = False

    def look_for_auto_map(members: dict[str, Any]) -> dict[str, Any]:
        nonlocal auto_map_found
        # transformers reads an object or a list. In a vocabulary the value is a token's number.
        auto_map_found |= isinstance(members.get("auto_map"), dict | list | str)
        return members

    try:
        document = json.loads(path.read_bytes(), object_hook=look_for_auto_map)
    except ValueError as error:
        raise ConfigError(f"{directory}: {name} is not JSON") from error
    if auto_map_found:
        raise ConfigError(f"{directory}: {name} names code (auto_map), which is never run")
    if path.name == _MODULES_FILE and isinstance(document, list):
        for module in document:
            kind = module.get("type", "") if isinstance(module, dict) else ""
            if not str(kind).startswith("sentence_transformers."):
                raise ConfigError(f"{directory}: {name} names code ({kind}), which is never run")
    if path.name == _PIPELINE_FILE and isinstance(document, dict):
        _check_pipeline(directory, document)


def _check_pipeline(directory: Path, index: dict[str, Any]) -> None:
    """Checks model_index.json: components are pairs of library and class, the rest settings."""
    if not isinstance(index.get("_class_name"), str):
        raise ConfigError(f"{directory}: {_PIPELINE_FILE} names code, which is never run")
    for component, value in index.items():
        library = value[0] if isinstance(value, list) and value else None
        if library not in _PIPELINE_LIBRARIES:
            raise ConfigError(
                f"{directory}: {_PIPELINE_FILE} takes {component} from {library}, which is never "
                "loaded"
            )
