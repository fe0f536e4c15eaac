"""Prints the tables of docs/performance.md from the raw figures: `python -m bench.markdown`.

It reads what there is of build/bench/NAME.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from bench import added_latency, embeddings, engines, load_clients, table
from bench.section import FOLDER

_Rows = Callable[[table.Results], list[list[str]]]

_TABLES: Final[dict[str, tuple[_Rows, ...]]] = {
    "gateways": (
        lambda results: table.headline(results, table.FIGURES),
        lambda results: table.details(results, table.DETAILS),
    ),
    "growth": (lambda results: table.details(results, table.DETAILS),),
    "added_latency": (added_latency.rows,),
    "load_clients": (lambda results: table.details(results, load_clients.COLUMNS),),
    "engines": (lambda results: table.headline(results, engines.FIGURES),),
    "embeddings": (
        lambda results: table.headline(results, tuple(embeddings.figures())),
        lambda results: table.details(results, embeddings.COLUMNS),
    ),
}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; columns without a value are left out."""
    head, *others = rows
    kept = [column for column in range(len(head)) if any(row[column] for row in others)]
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *others]
    return "\n".join(f"| {' | '.join(line[column] for column in kept)} |" for line in lines)


def main() -> None:
    """Prints the tables of each section that was measured."""
    for name, tables in _TABLES.items():
        path = FOLDER / f"{name}.json"
        if path.exists():
            document = json.loads(path.read_bytes())
            machine, results = document["machine"], table.Results(document["runs"])
            passes = 1 + max(run["repeat"] for run in results.runs)
            load = machine["load_average"][0]
            print(f"\n## {name}: {passes} passes, {machine['time']}, load average {load:.1f}\n")
            print("\n\n".join(markdown(rows(results)) for rows in tables))


if __name__ == "__main__":
    main()
