"""Import rules: the edge loads no model package; edge and inference do not import each other."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MARKED, marker_of

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("torch", "vllm", "transformers", "sentence_transformers", "diffusers", "tokenizers"),
    *("smg_grpc_proto", "smg_grpc_servicer"),
}
FORBIDDEN = {
    "edge": {"inference", "launch", *HEAVY},
    "inference": {"edge", "launch", "aiohttp"},
    "contract": {"edge", "inference", "keys", "launch", "grpc", "aiohttp", *HEAVY},
    "keys": {"edge", "inference", "launch", "grpc", "aiohttp", *HEAVY},
    "launch": HEAVY,
}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_folder_has_no_forbidden_import(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    # The conversion script runs in its own process, started by file name.
    files = [path for path in files if path.name != "convert_smollm2.py"]
    wrong = {
        str(path.relative_to(ROOT)): bad
        for path in files
        if (bad := FORBIDDEN[folder] & set(imported(path)))
    }
    assert not wrong


@pytest.mark.parametrize(
    "module", ["edge.__main__", "launch.__main__", "inference.__main__", "inference.engines"]
)
def test_importing_a_command_loads_no_model_package(module: str) -> None:
    code = f"import {module}, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(json.loads(done.stdout))
    assert "msgspec" in loaded
    assert not HEAVY & loaded


def test_only_marked_tests_import_engine_packages() -> None:
    tests = ROOT / "tests"
    for places in MARKED.values():
        for place in places:
            assert (tests / place).exists(), f"tests/conftest.py: MARKED names no file: {place}"
    engines = {"torch", "vllm", "transformers", "sentence_transformers", "diffusers"}
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in sorted(tests.rglob("*.py"))
        if marker_of(path) is None and (found := engines & set(imported(path)))
    }
    assert not wrong, "add these files to MARKED in tests/conftest.py"


LOWEST = ["protobuf==6.33.5", "grpcio==1.80.0"]


def test_generated_stubs_load_on_the_lowest_allowed_versions(tmp_path: Path) -> None:
    """Generated code requires minimum versions, and vLLM does not allow the newest protobuf."""
    subprocess.run(
        [
            *(Path(sys.executable).parent / "uv", "pip", "install", "--quiet", "--no-deps"),
            *("--python", sys.executable, "--target", tmp_path, *LOWEST, "typing-extensions"),
        ],
        check=True,
        timeout=100,
    )
    code = (
        "import google.protobuf, grpc, isthmus.v1.inference_pb2_grpc as public,"
        "isthmus.session.v1alpha1.session_pb2_grpc;"
        "print(google.protobuf.__version__, grpc.__version__, public.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT / 'generated'}"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["6.33.5", "1.80.0"]
