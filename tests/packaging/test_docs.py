"""Every path and method that the documents name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.clients.clients import CLIENTS, FEATURES

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"]
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")
FUNCTION = re.compile(r"`([A-Z_]\w+\.\w+)`")

# A test in docs/reliability.md: [file::name](path of the file).
TEST = re.compile(r"\[([\w.]+)::(\w+)\]\((\.\./[\w/.]+)\)")
BARS = {"L": 8, "O": 5, "F": 17, "B": 8, "S": 8}


def defined() -> set[str]:
    """Every method of the code, as Class.method."""
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_in_the_documents_exists(document: Path) -> None:
    named = PATH.findall(document.read_text())
    assert named
    kept = [name for name in named if not name.startswith(".venv")]
    missing = [name for name in kept if not (ROOT / name).exists()]
    assert not missing


def test_every_method_in_the_architecture_exists() -> None:
    named = set(FUNCTION.findall(DOCUMENTS[0].read_text()))
    assert named
    assert named <= defined()


def test_every_bar_has_a_row_with_bound_figure_and_existing_tests() -> None:
    lines = (ROOT / "docs" / "reliability.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rows = [row for row in rows if row and re.fullmatch(r"[LOFBS]\d+", row[0])]
    assert [row[0] for row in rows] == [
        f"{letter}{number + 1}" for letter, count in BARS.items() for number in range(count)
    ]
    for bar, promise, tests, bound, figure in rows:
        assert promise, bar
        assert bound, bar
        assert figure, bar
        for link in tests.split("<br>"):
            found = TEST.fullmatch(link)
            assert found, (bar, link)
            file, name, target = found.groups()
            path = (ROOT / "docs" / target).resolve()
            assert path.name == file
            assert re.search(rf"^(?:async )?def {name}\(", path.read_text(), re.MULTILINE), link


def test_the_table_of_clients_has_their_versions_and_what_is_tested() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    lines = page.partition("\n## Clients\n")[2].partition("\n## ")[0].splitlines()
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines if "|" in line]
    assert rows[0] == ("client", "packages", *FEATURES)
    assert rows[2:] == [client.row() for client in CLIENTS]
    for client in CLIENTS:
        assert {name.split()[0] for name in client.tests()} <= set(FEATURES), client.title
