"""Compares gateways without a model: `python -m bench.gateways`, a section of `make bench`.

Each pass starts every subject with every token source and puts the same loads on it. Other work of
the machine then affects all subjects alike, so ratios are taken within a pass. A run with an error
is void.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from bench import section, table
from bench.direct import Direct
from bench.isthmus import ISTHMUS, MESSAGE_A_TOKEN
from bench.passes import one_pass
from bench.scenarios import all_scenarios
from bench.subject import Subject

# The peer that runs a real model and is therefore not comparable here.
_WITH_A_MODEL: Final = "vllm"
# Peers that quick runs leave out: LiteLLM takes long to start, and the router has no key to check.
_NOT_QUICK: Final = ("litellm", "vllm-router")

GROWTH: Final = ("growth-", "pace-")
"""Beginnings of the names of the scenarios that are a section of their own."""


def all_subjects() -> dict[str, Subject]:
    """Returns our subjects and the peers, by their names on the command line."""
    subjects: dict[str, Subject] = {
        "direct": Direct(),
        "isthmus": ISTHMUS,
        "message-a-token": MESSAGE_A_TOKEN,
    }
    try:
        from bench.peers import PEERS
    except ImportError as error:
        print(f"no peers: {error}", file=sys.stderr)
        return subjects
    return subjects | {name: peer for name, peer in PEERS.items() if name != _WITH_A_MODEL}


def select(
    subjects: Mapping[str, Subject], names: Sequence[str] | None, *, quick: bool
) -> list[Subject]:
    """The named subjects; by default all, or in a quick run most."""
    usual = [name for name in subjects if not quick or name not in _NOT_QUICK]
    return [subjects[name] for name in names or usual]


def main(name: str = "gateways", about: str | None = __doc__, repeats: int = 5) -> None:
    """Runs the comparison, writes the results and prints the tables.

    Args:
        name: The section: "gateways", or "growth" for the scenarios of bench/growth.py.
        about: Its docstring.
        repeats: The most passes.
    """
    subjects = all_subjects()
    parser = section.parser(name, about, repeats)
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", help="names or their beginnings")
    parser.add_argument("--subjects", nargs="+", choices=sorted(subjects), help="default: all")
    options = parser.parse_args()
    section.raise_file_limit()
    scenarios = [
        scenario
        for scenario in all_scenarios(quick=options.quick)
        if scenario.name.startswith(tuple(options.only or ("",)))
        and scenario.name.startswith(GROWTH) == (name == "growth")
    ]
    chosen = select(subjects, options.subjects, quick=options.quick)
    passes = (one_pass(repeat, chosen, scenarios) for repeat in section.passes(options))
    results = section.record(itertools.chain.from_iterable(passes), options)
    section.show(results, table.FIGURES, table.DETAILS, options.json)
    print("\n".join(("", *table.NOTES)))
    section.end(table.faults(results))


if __name__ == "__main__":
    main()
