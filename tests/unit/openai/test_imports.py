"""edge/openai and edge/anthropic stay free of I/O: they import only the modules listed here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = {"openai": ("edge.openai",), "anthropic": ("edge.anthropic", "edge.openai")}
ALLOWED = {
    "__future__",
    "abc",
    "binascii",
    "codecs",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "google.protobuf.message",
    "google.rpc.code_pb2",
    "google.rpc.error_details_pb2",
    "google.rpc.status_pb2",
    "itertools",
    "math",
    "msgspec",
    "msgspec.structs",
    "numpy",
    "operator",
    "orjson",
    "pybase64",
    "re",
    "types",
    "typing",
}
OWN = ("contract", "isthmus.v1")


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names.add(node.module or "")
    return names


def foreign_imports(folder: str) -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "edge" / folder).rglob("*.py"):
        found |= imported(ast.parse(path.read_text()))
    return {name for name in found if not name.startswith((*OWN, *FOLDERS[folder]))}


def test_edge_openai_imports_only_listed_modules() -> None:
    assert foreign_imports("openai") == ALLOWED


def test_edge_anthropic_imports_only_listed_modules() -> None:
    assert foreign_imports("anthropic") <= ALLOWED | {"datetime"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_importing_the_folder_loads_no_io_and_no_heavy_module(folder: str) -> None:
    files = (ROOT / "edge" / folder).rglob("[a-z]*.py")
    paths = [path.relative_to(ROOT).with_suffix("") for path in files]
    modules = ", ".join(".".join(path.parts) for path in paths)
    script = f"import sys, json, {modules}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    heavy = {"aiohttp", "asyncio", "grpc", "logging", "numpy", "random", "socket", "torch"}
    assert not loaded & heavy
