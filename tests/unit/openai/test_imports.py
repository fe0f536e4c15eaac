"""edge/openai stays free of I/O: it imports only the modules listed here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "edge" / "openai"
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
OWN = ("contract", "edge.openai", "isthmus.v1")


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names.add(node.module or "")
    return names


def test_edge_openai_imports_only_listed_modules() -> None:
    found: set[str] = set()
    for path in FOLDER.rglob("*.py"):
        found |= imported(ast.parse(path.read_text()))
    foreign = {name for name in found if not name.startswith(OWN)}
    assert foreign == ALLOWED


def test_importing_edge_openai_loads_no_io_and_no_heavy_module() -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in FOLDER.rglob("[a-z]*.py")]
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
