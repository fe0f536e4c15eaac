"""Isthmus beside `vllm serve`, both with a real engine: `python -m bench.engines`.

Both get the same model, engine arguments and environment, one after the other and in turns: two
engines at once would not leave each other the machine. Tokens are counted by the usage that the
servers send, and every answer has the tokens that were asked for (`ignore_eos`).

With SmolLM2 nearly all work is the engine's, so the ratio says that nothing is lost. With the tiny
model of random weights the work in front of the engine is what bounds the tokens a second.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from bench import tiny_model
from bench.isthmus import ISTHMUS, stack
from bench.peers.vllm_serve import VllmServe, default_text_model
from bench.processes import ROOT
from bench.run import one_pass, raise_file_limit, record, show
from bench.scenarios import Scenario
from bench.subject import Running, Source
from bench.table import Figure, own, ratio
from inference.config import ModelConfig
from launch.environment import inference_environment

RESULTS: Final = ROOT / "build" / "bench" / "engines.json"
TINY: Final = ROOT / "build" / "bench" / "tiny-model"
SERVE: Final = VllmServe.name
_READY_SECONDS: Final = 600
_LIMIT_SECONDS: Final = 300.0
# vLLM's default depends on who starts the engine.
_SAME: Final = {"max_num_batched_tokens": 2048}

SMOLLM2_STREAMS: Final = {1: 4, 8: 2, 32: 1}
"""Answers that each of so many streams makes, one after another."""

TINY_STREAMS: Final = {64: 8, 256: 2}
"""The same for the tiny model."""


@dataclass(frozen=True)
class IsthmusWithVllm:
    """Isthmus as it is installed, serving one model with vLLM.

    Attributes:
        model: Its source is a directory.
    """

    model: ModelConfig
    name = ISTHMUS.name

    @contextlib.contextmanager
    def start(self, source: Source) -> Iterator[Running]:  # noqa: ARG002
        """Starts both programs and waits until the model answers."""
        began = time.monotonic()
        model = self.model
        variables = inference_environment(model, Path(model.source), os.environ)
        configuration = configured(model)
        with stack(
            configuration, model.id, _READY_SECONDS, ISTHMUS.transport, **variables
        ) as running:
            # Counted from the start of the first program, as for a server that is one.
            yield dataclasses.replace(running, start_seconds=time.monotonic() - began)


def configured(model: ModelConfig) -> str:
    """The configuration file of one model; JSON's values are TOML's."""
    members = {
        "id": model.id,
        "engine": model.engine,
        "source": model.source,
        "max_running": model.running_limit,
        **({"tool_parser": model.tool_parser} if model.tool_parser else {}),
    }
    lines = ["[[models]]", *_assignments(members)]
    return "\n".join([*lines, "[models.engine_args]", *_assignments(model.engine_args), ""])


def _assignments(members: dict[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in members.items()]


def smollm2() -> ModelConfig:
    """The default text model, with the engine arguments of the built-in configuration."""
    model = default_text_model()
    return msgspec.structs.replace(model, engine_args={**model.engine_args, **_SAME})


def tiny(tokenizer_of: Path) -> ModelConfig:
    """The model of random weights, made now."""
    tiny_model.make(TINY, tokenizer_of)
    streams = max(TINY_STREAMS)
    engine_args = {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": streams,
        **_SAME,
    }
    return ModelConfig(
        id="tiny",
        engine="vllm",
        source=str(TINY),
        max_running=streams,
        engine_args=engine_args,
    )


def scenarios(name: str, streams: dict[int, int], tokens: int, *, quick: bool) -> list[Scenario]:
    """One for each number of streams; all in one start of the engine."""
    return [
        Scenario(
            f"{name}-{count}",
            Source(),
            {
                "mode": "streams",
                "real": True,
                "connections": count,
                "tokens": tokens // 4 if quick else tokens,
                "rounds": 1 if quick else rounds,
                # The same number of answers for both: nobody begins one more than the other.
                "seconds": 0,
                "limit_seconds": _LIMIT_SECONDS,
            },
        )
        for count, rounds in streams.items()
    ]


def _figures() -> Iterator[Figure]:
    rows = [("SmolLM2", "smollm2", SMOLLM2_STREAMS, 1.0), ("tiny model", "tiny", TINY_STREAMS, 1.2)]
    for title, name, streams, aim in rows:
        for count in streams:
            scenario, of = f"{name}-{count}", f"{title}, {count} stream{'s' if count > 1 else ''}"
            speed = ratio(scenario, "tokens_per_s", SERVE)
            yield Figure(f"{of}: tokens a second", speed, SERVE, None, aim, at_least=True)
            cost = ratio(scenario, "edge_and_worker_us_per_token", SERVE)
            yield Figure(f"{of}: CPU a token before the engine, us", cost, SERVE, None, None)
            first = ratio(scenario, "ttft_p50_ms", SERVE)
            yield Figure(f"{of}: TTFT p50, ms", first, SERVE, None, None)
    start = own(f"smollm2-{min(SMOLLM2_STREAMS)}", "start_s", peer=SERVE)
    yield Figure("SmolLM2: start to first answer, s", start, SERVE, None, None)


FIGURES: Final = tuple(_figures())

DETAILS: Final = (
    ("tokens_per_s", "tokens/s"),
    ("edge_us_per_token", "edge us/token"),
    ("worker_us_per_token", "worker us/token"),
    ("edge_and_worker_us_per_token", "sum us/token"),
    ("engine_us_per_token", "engine us/token"),
    ("tokens_per_chunk", "tokens/chunk"),
    ("ttft_p50_ms", "TTFT p50 ms"),
    ("ttft_p99_ms", "TTFT p99 ms"),
    ("gap_p50_ms", "gap p50 ms"),
    ("gap_p99_ms", "gap p99 ms"),
    ("client_us_per_chunk", "client us/chunk"),
    ("start_s", "start s"),
)


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.engines", description=__doc__)
    add = parser.add_argument
    add("--repeats", type=int, default=5, help="passes (default %(default)s)")
    add("--only", choices=("smollm2", "tiny"), help="one of the models")
    add("--quick", action="store_true", help="once, and short; figures mean little")
    add("--json", type=Path, default=RESULTS, help="default %(default)s")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = 1
    raise_file_limit()
    real = smollm2()
    groups = [
        (real, scenarios("smollm2", SMOLLM2_STREAMS, 64, quick=arguments.quick)),
        (tiny(Path(real.source)), scenarios("tiny", TINY_STREAMS, 128, quick=arguments.quick)),
    ]
    passes = (
        one_pass(repeat, [IsthmusWithVllm(model), VllmServe(model)], chosen)
        for repeat in range(arguments.repeats)
        for model, chosen in groups
        if not arguments.only or chosen[0].name.startswith(arguments.only)
    )
    results = record(itertools.chain.from_iterable(passes), arguments)
    show(results, FIGURES, DETAILS, arguments.json)


if __name__ == "__main__":
    main()
