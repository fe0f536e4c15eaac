"""Compares engines on a CPU with the default text model: `python -m bench.cpu [--quick]`.

| column | what runs |
|---|---|
| isthmus | both programs, with the data type, threads and steps that they choose |
| vllm serve, same | vLLM's own server with these choices as arguments |
| vllm serve, defaults | the same with nothing but the model and the length of its context |
| llama.cpp, Q4_1 and F16 | llama.cpp's server with the same weights, as published and at 16 bits |

They run in turns. The figures are medians of the passes; all are written to build/bench/cpu.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from bench import engine_load, measure, section, table
from bench.engine_load import EngineLoad, Figures, Sizes
from bench.engines import IsthmusWithVllm
from bench.peers.llama_cpp import LlamaCpp
from bench.peers.vllm_serve import VllmServe, default_text_model
from bench.processes import LOGS
from bench.subject import Running, Source, Subject
from inference.engines import cpu_plan

# The longest time for the loads of one subject.
_LIMIT_SECONDS: Final = 240
# The log line with the sizes of steps that Isthmus has chosen, and the sizes if there is none.
_LOG: Final = LOGS / "isthmus-inference.log"
_LOGGED: Final = re.compile(r"steps of (\d+) tokens, a long prompt takes (\d+)")
_STEPS: Final = (512, 128)


class Named:
    """A subject under another name, with variables of its environment."""

    def __init__(self, name: str, subject: Subject, **variables: str) -> None:
        self.name = name
        self._subject = subject
        self._variables = variables

    @contextlib.contextmanager
    def start(self, source: Source) -> Iterator[Running]:
        """Starts the subject in this environment."""
        before = dict(os.environ)
        os.environ.update(self._variables)
        try:
            with self._subject.start(source) as running:
                yield running
        finally:
            os.environ.clear()
            os.environ.update(before)


def subjects() -> dict[str, Subject]:
    """Returns the columns by their names on the command line."""
    model = default_text_model()
    plan = cpu_plan.plan_here(model)
    steps, long_prompt = logged_steps(_LOG)
    chosen = {
        "dtype": plan.dtype,
        "max_num_batched_tokens": steps,
        "long_prefill_token_threshold": long_prompt,
        "long_prefill_token_threshold_adaptive": True,
    }
    same = msgspec.structs.replace(model, engine_args={**model.engine_args, **chosen})
    plain = msgspec.structs.replace(
        model, engine_args={"max_model_len": model.engine_args["max_model_len"]}
    )
    return {
        "isthmus": IsthmusWithVllm(model),
        "same": Named(
            "vllm serve, same", VllmServe(same), VLLM_CPU_OMP_THREADS_BIND=f"0-{plan.threads - 1}"
        ),
        "defaults": Named("vllm serve, defaults", VllmServe(plain)),
        "q4": LlamaCpp("Q4_1"),
        "f16": LlamaCpp("F16"),
        "two-threads": Named(
            f"isthmus, {plan.threads + 1} threads",
            IsthmusWithVllm(model),
            OMP_NUM_THREADS=str(plan.threads + 1),
        ),
    }


def logged_steps(log: Path) -> tuple[int, int]:
    """Tokens of a step and of a long prompt in it, which the last started Isthmus has chosen."""
    found = _LOGGED.findall(log.read_text(errors="replace")) if log.exists() else []
    return (int(found[-1][0]), int(found[-1][1])) if found else _STEPS


COLUMNS: Final = ("isthmus", "same", "defaults", "q4", "f16")
"""The columns of a run without `--only`."""


def measured(subject: Subject, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Starts a subject and puts the loads on it; an error is an entry of the result."""
    figures: Figures = {}
    result: dict[str, Any] = {"subject": subject.name, "figures": figures}
    try:
        with subject.start(Source()) as running:
            if running.start_seconds is not None:
                figures["start_s"] = running.start_seconds
            load = EngineLoad(running, seed)
            try:
                asyncio.run(_limited(load, sizes))
            finally:
                figures.update(load.figures)
    except Exception as error:  # a subject that fails must not end the others
        result["error"] = f"{type(error).__name__}: {error}"
    return result


async def _limited(load: EngineLoad, sizes: Sizes) -> None:
    async with asyncio.timeout(_LIMIT_SECONDS):
        await load.run(sizes)


def rendered(runs: Sequence[dict[str, Any]], sizes: Sizes) -> str:
    """Returns the table of medians in Markdown."""
    names = list(dict.fromkeys(run["subject"] for run in runs))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for figure, title, shown in engine_load.rows(sizes):
        cells = []
        for name in names:
            values = [
                run["figures"][figure]
                for run in runs
                if run["subject"] == name and figure in run["figures"]
            ]
            cells.append(shown(statistics.median(values)) if values else "-")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the passes, writes the results and prints the table."""
    parser = section.parser("cpu", __doc__, repeats=3)
    parser.add_argument("--only", nargs="+", choices=(*COLUMNS, "two-threads"), default=COLUMNS)
    arguments = parser.parse_args()
    sizes = engine_load.QUICK if arguments.quick else engine_load.FULL
    cpu = cpu_plan.this_cpu()
    machine = {**measure.machine(), "cpu": cpu.name, "plan": str(cpu_plan.plan_here())}
    print(table.about(machine), f"{cpu.name}: {machine['plan']}", sep="\n", flush=True)
    runs: list[dict[str, Any]] = []
    for repeat in section.passes(arguments):
        for name in section.in_turn(arguments.only, repeat):
            run = {"repeat": repeat, **measured(subjects()[name], sizes, repeat)}
            runs.append(run)
            section.progress(f"{repeat + 1} {run['subject']:24} {run.get('error', 'ok')}")
            section.write(arguments, {"machine": machine, "runs": runs})
    print("\n" + rendered(runs, sizes))
    print(f"\nEvery raw figure: {arguments.json}")
    section.end([f"{run['subject']}: {run['error']}" for run in runs if "error" in run])


if __name__ == "__main__":
    main()
