"""Compares gateways without a model: `python -m bench.gateways`, a section of `make bench`.

Each pass starts every subject with every token source and puts the same loads on it. Other work of
the machine then affects all subjects alike, so ratios are taken within a pass. A run with an error
is void.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Final

from bench import section, table
from bench.direct import Direct
from bench.isthmus import ISTHMUS, MESSAGE_A_TOKEN
from bench.passes import one_pass
from bench.scenarios import all_scenarios
from bench.subject import Subject

# The peer that runs a real model and is therefore not comparable here.
_WITH_A_MODEL: Final = "vllm"


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


def main() -> None:
    """Runs the comparison, writes the results and prints the tables."""
    subjects = all_subjects()
    options = _options(sorted(subjects))
    section.raise_file_limit()
    scenarios = [
        scenario
        for scenario in all_scenarios(quick=options.quick)
        if not options.only or any(scenario.name.startswith(name) for name in options.only)
    ]
    chosen = [subjects[name] for name in options.subjects or subjects]
    passes = (one_pass(repeat, chosen, scenarios) for repeat in section.passes(options))
    results = section.record(itertools.chain.from_iterable(passes), options)
    section.show(results, table.FIGURES, table.DETAILS, options.json)
    print("\n".join(("", *table.NOTES)))
    section.end(table.faults(results))


def _options(names: Sequence[str]) -> argparse.Namespace:
    parser = section.parser("gateways", __doc__, repeats=5)
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", help="names or their beginnings")
    parser.add_argument("--subjects", nargs="+", choices=names, help="default: all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
