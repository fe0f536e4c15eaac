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


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lost = []
    for link in ("".join(found) for found in LINK.findall(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "README.md"]
    assert [name for name in pages if f"({name})" not in index] == []
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
