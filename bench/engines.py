"""Compares Isthmus with `vllm serve`, both with a real engine: `python -m bench.engines`.

Both get the same model, engine arguments and environment. They run in turns, never together,
because two engines would share the machine. Tokens are counted by the usage of the responses, and
every response has the requested number of tokens (`ignore_eos`).

With SmolLM2 nearly all work is the engine's, so the ratio shows whether Isthmus slows the engine
down. With the tiny model of random weights, the work before the engine limits the tokens a second.
`--fronts N` adds both with N processes before one engine, for the tiny model.
"""

from __future__ import annotations

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

from bench import section, tiny_model
from bench.isthmus import ISTHMUS, stack
from bench.passes import one_pass
from bench.peers.vllm_serve import VllmServe, default_text_model
from bench.processes import ROOT
from bench.scenarios import Scenario
from bench.subject import Running, Source
from bench.table import Figure, faults, own, ratio
from inference.config import ModelConfig
from launch.environment import inference_environment

TINY: Final = ROOT / "build" / "bench" / "tiny-model"
SERVE: Final = VllmServe.name
# The longest wait for a server to become ready, and for a run of the client.
_READY_SECONDS: Final = 600
_LIMIT_SECONDS: Final = 300.0
# Engine arguments whose defaults differ: Isthmus chooses the data type by the CPU, and vLLM the
# number of batched tokens by the program that starts the engine.
_SAME: Final = {"dtype": "bfloat16", "max_num_batched_tokens": 2048}

SMOLLM2_STREAMS: Final = {1: 4, 8: 2, 32: 1}
"""By number of concurrent streams: responses that each streams, one after another."""

TINY_STREAMS: Final = {64: 8, 256: 2}
"""The same for the tiny model."""


@dataclass(frozen=True)
class IsthmusWithVllm:
    """The subject Isthmus, serving one model with vLLM.

    Attributes:
        model: The model's configuration, with a directory as its source.
    """

    model: ModelConfig

    @property
    def name(self) -> str:
        """Its name in the tables."""
        fronts = self.model.fronts
        return ISTHMUS.name if fronts == 1 else f"{ISTHMUS.name}, {fronts} fronts"

    @contextlib.contextmanager
    def start(self, source: Source) -> Iterator[Running]:  # noqa: ARG002
        """Starts both programs and waits for a first response."""
        began = time.monotonic()
        model = self.model
        variables = inference_environment(model, Path(model.source), os.environ)
        configuration = config_text(model)
        transport, launcher = ISTHMUS.transport, "launch" if model.fronts > 1 else ""
        with stack(
            configuration,
            model.id,
            _READY_SECONDS,
            transport,
            launcher,
            fronts=model.fronts,
            **variables,
        ) as running:
            # The time counts from the start of the first program; a peer is a single program.
            yield dataclasses.replace(running, start_seconds=time.monotonic() - began)


def config_text(model: ModelConfig) -> str:
    """Returns the TOML of one model. Its values are written as JSON, which is also valid TOML."""
    members = {
        "id": model.id,
        "engine": model.engine,
        "source": model.source,
        "max_running": model.running_limit,
        "max_choices": model.max_choices,
        "fronts": model.fronts,
        **({"tool_parser": model.tool_parser} if model.tool_parser else {}),
    }
    lines = ["[[models]]", *_assignments(members)]
    return "\n".join([*lines, "[models.engine_args]", *_assignments(model.engine_args), ""])


def _assignments(members: dict[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in members.items()]


def smollm2() -> ModelConfig:
    """Returns the default text model, with _SAME added to its engine arguments."""
    model = default_text_model()
    return msgspec.structs.replace(model, engine_args={**model.engine_args, **_SAME})


def tiny(tokenizer_of: Path) -> ModelConfig:
    """Makes the model of random weights and returns its configuration."""
    tiny_model.make(TINY, tokenizer_of)
    streams = max(TINY_STREAMS)
    engine_args = {
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
    """Makes a scenario for each number of streams; their equal source lets them share a start."""
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
                # Without a duration, both servers stream the same number of responses.
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
    """Runs the comparison, writes the results and prints the tables."""
    parser = section.parser("engines", __doc__, repeats=5)
    parser.add_argument("--only", choices=("smollm2", "tiny"), help="one of the models")
    parser.add_argument("--fronts", type=int, metavar="N", help="also N processes for one engine")
    arguments = parser.parse_args()
    only = arguments.only or ("smollm2" if arguments.quick else "")
    section.raise_file_limit()
    real = smollm2()
    small = tiny(Path(real.source))
    several = [
        msgspec.structs.replace(small, fronts=count, max_choices=1)
        for count in ([arguments.fronts] if arguments.fronts else [])
    ]
    groups = [
        ([real], scenarios("smollm2", SMOLLM2_STREAMS, 64, quick=arguments.quick)),
        ([small, *several], scenarios("tiny", TINY_STREAMS, 128, quick=arguments.quick)),
    ]
    passes = (
        one_pass(repeat, [kind(m) for m in models for kind in (IsthmusWithVllm, VllmServe)], chosen)
        for repeat in section.passes(arguments)
        for models, chosen in groups
        if chosen[0].name.startswith(only)
    )
    results = section.record(itertools.chain.from_iterable(passes), arguments)
    section.show(results, FIGURES, DETAILS, arguments.json)
    section.end(faults(results))


if __name__ == "__main__":
    main()
