"""The papers name what exists: every path, and every function beside it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"]
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")
FUNCTION = re.compile(r"`([A-Z_]\w+\.\w+)`")


def defined() -> set[str]:
    """Class.method of all our code."""
    names = set()
    for folder in ("contract", "edge", "inference", "keys", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    names |= {
                        f"{node.name}.{inner.name}"
                        for inner in node.body
                        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                    }
    return names


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_every_path_in_the_papers_exists(paper: Path) -> None:
    named = PATH.findall(paper.read_text())
    assert named
    kept = [name for name in named if not name.startswith(".venv")]
    missing = [name for name in kept if not (ROOT / name).exists()]
    assert not missing


def test_every_method_in_the_architecture_exists() -> None:
    named = set(FUNCTION.findall(PAPERS[0].read_text()))
    assert named
    assert named <= defined()
