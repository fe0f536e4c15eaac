"""The lists of the mutation tester name what exists; `make mutants` itself is not run here."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTS = ROOT / "tests" / "mutation"
PARTS = tomllib.loads((LISTS / "parts.toml").read_text())
EQUIVALENT = tomllib.loads((LISTS / "equivalent.toml").read_text())["mutants"]


def test_parts_name_existing_files_and_tests() -> None:
    named = [part for name, part in PARTS.items() if name != "libraries"]
    for part in named:
        for path in (*part["files"], *part["tests"]):
            assert (ROOT / path).is_file(), path
    files = [path for part in named for path in part["files"]]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("entry", EQUIVALENT, ids=lambda entry: entry["before"][:40])
def test_equivalent_mutant_is_of_code_that_exists_and_has_a_reason(entry: dict[str, str]) -> None:
    assert any(entry["file"] in part["files"] for part in PARTS.values() if isinstance(part, dict))
    source = " ".join(line.strip() for line in (ROOT / entry["file"]).read_text().splitlines())
    assert entry["before"] in source
    assert entry["before"] != entry["after"]
    assert entry["because"]
