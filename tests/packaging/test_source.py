"""Rules for every source file: sizes, dangerous calls, machine paths."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("contract", "edge", "inference", "launch", "keys", "training")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# Limits in lines, so that files and functions stay readable.
MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 60
DANGEROUS = re.compile(
    r"\bimport pickle\b|(?<![.\w])(?:eval|exec)\(|torch\.load|shell=True|verify=False"
    r"|trust_remote_code=True|\bjson_format\b"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_file_is_short_and_has_no_dangerous_call(path: Path) -> None:
    text = path.read_text()
    assert not DANGEROUS.search(text)
    assert len(text.splitlines()) <= MAX_FILE_LINES
    tree = ast.parse(text)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_files_name_no_machine_path_or_registry_host() -> None:
    listed = [ROOT / "pyproject.toml", ROOT / "Makefile", *(ROOT / "requirements").iterdir()]
    folders = [
        path
        for name in ("docker", "deploy", "docs", "bench")
        for path in (ROOT / name).rglob("*.*")
    ]
    # Compiled files hold the paths of their sources.
    folders = [path for path in folders if path.suffix != ".pyc"]
    for path in [*FILES, *listed, *folders, ROOT / "README.md"]:
        text = path.read_text(errors="replace")
        assert not re.search(r"(?<![\w.])/(?:root|work|opt)/", text), path
        assert "pypi.org" not in text, path
