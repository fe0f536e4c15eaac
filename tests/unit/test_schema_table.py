"""docs/compatibility.md says of each keyword of JSON Schema what the code does with it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from inference.engines.json_schema import rules

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"


def _names(keywords: Collection[str]) -> str:
    ordered = sorted(keywords, key=lambda name: name.lstrip("$").lower())
    return ", ".join(f"`{name}`" for name in ordered)


def test_the_table_of_keywords_is_the_code() -> None:
    rows = [f"| {_names(rules.ENFORCED)} | enforced |"]
    for name, form in rules.IN_SOME_FORMS.items():
        rows.append(f"| `{name}` | enforced{'' if form == 'always' else f': {form}'} |")
    rows += [
        f"| {_names(rules.REFUSED)} | 400 |",
        f"| {_names(rules.ADVICE)} | no effect |",
        f"| {_names(rules.OLD_ENFORCED)} (earlier drafts) | enforced |",
        f"| {_names(rules.OLD_REFUSED)} (earlier drafts) | 400 |",
    ]
    lines = DOCUMENT.read_text().splitlines()
    start = lines.index("| keyword | in an answer |") + 2
    assert lines[start : start + len(rows)] == rows
    assert any(_names(rules.FORMATS) in line for line in lines)
