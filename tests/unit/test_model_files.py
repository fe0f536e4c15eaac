"""The rule for model directories, which holds for every engine that loads one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from inference.engines.model_files import check_model_directory, fingerprint, newest_mtime
from keys import ConfigError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "model.safetensors").write_bytes(b"12345678")
    return directory


def test_files_of_data_are_allowed(directory: Path) -> None:
    for name in ("README.md", "LICENSE", ".gitattributes", "chat_template.jinja", "merges.txt"):
        (directory / name).write_text("")
    (directory / "tokenizer.model").write_bytes(b"\x00")
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (directory / "original").mkdir()
    (directory / "original" / "params.json").write_text("{}")
    check_model_directory(directory)


@pytest.mark.parametrize(
    "name",
    [
        "modeling.py",
        "modeling.PY",
        "modeling.pyc",
        "kernel.so",
        "pytorch_model.bin",
        "a.pt",
        "a.PKL",
        "a.pickle",
        "a.ckpt",
        "a.joblib",
        "original/consolidated.pth",
    ],
)
def test_code_and_pickles_are_refused(directory: Path, name: str) -> None:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(ConfigError, match=name):
        check_model_directory(directory)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "processor.json", "part/config.json"]
)
@pytest.mark.parametrize(
    "document",
    [
        {"auto_map": {"AutoModel": "modeling.Model"}},
        {"auto_map": ["tokenization.Tokenizer", None]},
        {"text_config": {"auto_map": {"AutoConfig": "configuration.Config"}}},
    ],
    ids=["object", "list", "nested"],
)
def test_auto_map_is_refused_in_any_json_file(
    directory: Path, name: str, document: dict[str, Any]
) -> None:
    (directory / "part").mkdir()
    (directory / name).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="auto_map"):
        check_model_directory(directory)


def test_a_token_may_be_called_auto_map(directory: Path) -> None:
    (directory / "vocab.json").write_text('{"auto_map": 17}')
    check_model_directory(directory)


def test_a_json_file_that_is_not_json_is_refused(directory: Path) -> None:
    (directory / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        check_model_directory(directory)


def test_a_link_out_of_the_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.safetensors").write_bytes(b"")
    (directory / "extra.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ConfigError, match="links outside"):
        check_model_directory(directory)


def test_a_snapshot_in_a_hub_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    blob = tmp_path / "models--a--b" / "blobs" / "0123"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "main"
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to(blob)
    check_model_directory(snapshot)


def test_fingerprint_changes_with_files_and_engine_settings(directory: Path) -> None:
    first = fingerprint(directory, "float32")
    assert first == fingerprint(directory, "float32")
    assert first != fingerprint(directory, "bfloat16")
    (directory / "model.safetensors").write_bytes(b"12345679")
    assert first != fingerprint(directory, "float32")


def test_newest_mtime_is_that_of_the_newest_file(directory: Path) -> None:
    os.utime(directory / "config.json", (2_000, 2_000))
    os.utime(directory / "model.safetensors", (1_000, 1_000))
    assert newest_mtime(directory) == 2_000
