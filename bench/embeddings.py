"""Compares servers of an embedding model: `python -m bench.embeddings`, a section of `make bench`.

Isthmus, sentence-transformers in a simple server, and Infinity serve the default embedding model in
float32, each with one thread of torch for each core. Every request has one text. The lengths
differ, as those of questions and of parts of documents do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from bench import section, table
from bench.engines import config_text
from bench.isthmus import ISTHMUS, stack
from bench.passes import one_pass
from bench.peers.embedding_servers import EncodeServer, Infinity
from bench.scenarios import Scenario
from bench.subject import Running, Source
from inference.config import ModelConfig
from launch.embedded import default_cache_directory, prepare_embedding_model
from launch.environment import cpu_count, inference_environment

CALLERS: Final = (1, 8, 64)
ENCODE: Final = EncodeServer.name
_READY_SECONDS: Final = 180
_TEXTS: Final = 512
# Words of the shortest and the longest text; a common word is a token of the model.
_WORDS: Final = (4, 120)
_VOCABULARY: Final = (
    *("water", "land", "sea", "river", "town", "house", "people", "time", "year", "work", "light"),
    *("night", "road", "stone", "tree", "field", "market", "book", "letter", "story", "music"),
)


@dataclass(frozen=True)
class IsthmusEmbeddings:
    """The subject Isthmus with sentence-transformers. The attributes are those of EncodeServer."""

    directory: Path
    threads: int
    name = ISTHMUS.name

    @contextlib.contextmanager
    def start(self, source: Source) -> Iterator[Running]:  # noqa: ARG002
        """Starts both programs and waits for a first vector."""
        model = ModelConfig(
            id="model", engine="sentence-transformers", source=str(self.directory), max_running=256
        )
        variables = inference_environment(model, self.directory, os.environ)
        variables["OMP_NUM_THREADS"] = str(self.threads)
        with stack(
            config_text(model),
            model.id,
            _READY_SECONDS,
            ISTHMUS.transport,
            embeds=True,
            **variables,
        ) as running:
            yield dataclasses.replace(running, embedding_model=model.id)


def texts() -> tuple[str, ...]:
    """The same texts in each run, with lengths between _WORDS, most of them short."""
    chance = random.Random(1)
    shortest, longest = _WORDS
    lengths = (int(shortest * (longest / shortest) ** chance.random()) for _ in range(_TEXTS))
    return tuple(" ".join(chance.choices(_VOCABULARY, k=length)) for length in lengths)


def scenarios(seconds: float) -> list[Scenario]:
    """A scenario for each number of callers; their equal source lets them share a start."""
    load = {"mode": "embeddings", "texts": texts(), "seconds": seconds, "warm_seconds": 1.0}
    return [
        Scenario(f"embed-{callers}", Source(), {**load, "connections": callers})
        for callers in CALLERS
    ]


def figures() -> Iterator[table.Figure]:
    """Tokens a second and latency, against the simple server."""
    for callers in CALLERS:
        of = f"{callers} caller{'s' if callers > 1 else ''}"
        speed = table.ratio(f"embed-{callers}", "input_tokens_per_s", ENCODE)
        yield table.Figure(f"{of}: tokens a second", speed, ENCODE, None, None, at_least=True)
        wait = table.ratio(f"embed-{callers}", "latency_p50_ms", ENCODE)
        yield table.Figure(f"{of}: latency p50, ms", wait, ENCODE, None, None)


COLUMNS: Final = (
    ("input_tokens_per_s", "tokens/s"),
    ("requests_per_s", "requests/s"),
    ("latency_p50_ms", "p50 ms"),
    ("latency_p99_ms", "p99 ms"),
    ("start_s", "start s"),
)


def _with_tokens(entries: Iterator[dict[str, Any]], mean: float) -> Iterator[dict[str, Any]]:
    """Adds the tokens a second; all texts are sent equally often."""
    for entry in entries:
        if not entry["void"]:
            figures = entry["figures"]
            figures["input_tokens_per_s"] = mean * figures["requests_per_s"]
        yield entry


def main() -> None:
    """Runs the comparison, writes the results and prints the tables."""
    options = section.parser("embeddings", __doc__, repeats=5).parse_args()
    directory = prepare_embedding_model(default_cache_directory(), section.progress)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    mean = sum(len(tokenizer.encode(text).ids) for text in texts()) / _TEXTS
    kinds = (IsthmusEmbeddings, EncodeServer, Infinity)
    subjects = [kind(directory, cpu_count()) for kind in kinds]
    chosen = scenarios(1.5 if options.quick else 6.0)
    passes = (one_pass(repeat, subjects, chosen) for repeat in section.passes(options))
    entries = itertools.chain.from_iterable(passes)
    results = section.record(_with_tokens(entries, mean), options)
    section.show(results, tuple(figures()), COLUMNS, options.json)
    section.end(table.faults(results))


if __name__ == "__main__":
    main()
