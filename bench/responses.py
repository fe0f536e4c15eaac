"""Runs the cases of /v1/responses against Isthmus and `vllm serve`: `python -m bench.responses`.

Both serve the default text model in float32 with the same engine arguments and tool parser, one
after the other. The cases are those of bench/responses_cases.py, and Open Responses' compliance
suite with the types of its specification; a server's model must call a tool there, so tool choice
forces it. The results go to build/bench/responses.json, and the program prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import aiohttp
import msgspec

from bench.engines import IsthmusWithVllm
from bench.peers.vllm_serve import VllmServe, default_text_model
from bench.processes import ROOT, environment
from bench.responses_api import Api, Case, CaseError
from bench.responses_cases import CASES, LEFT_OUT
from bench.subject import Running, Source, Subject
from inference.config import ModelConfig
from tests.clients.clients import CLIENTS

RESULTS: Final = ROOT / "build" / "bench" / "responses.json"
# The longest time of a case, and of the whole compliance suite.
_CASE_SECONDS: Final = 90
_SUITE_SECONDS: Final = 600
# Characters of a reason in the table.
_REASON: Final = 90
# The beginning of the names of the suite's cases.
_SUITE: Final = "Open Responses: "
PASS: Final = "pass"  # noqa: S105
# The suite's cases that the default model cannot answer.
_SUITE_LEFT_OUT: Final = {"vision takes an image": "needs a vision model"}

Outcomes = dict[str, str]
"""By the name of a case: PASS, or in a few words what was found instead."""


def model() -> ModelConfig:
    """Returns the default text model in float32."""
    found = default_text_model()
    engine_args = {**found.engine_args, "dtype": "float32"}
    return msgspec.structs.replace(found, engine_args=engine_args)


async def outcomes(running: Running, cases: Sequence[Case]) -> Outcomes:
    """Runs cases one after another."""
    headers = {"Authorization": f"Bearer {running.key}"}
    async with aiohttp.ClientSession(running.url, headers=headers) as http:
        api = Api(http, running.model)
        return {case.name: await outcome(case, api) for case in cases}


async def outcome(case: Case, api: Api) -> str:
    """Runs a case; an unexpected form of an answer is a failure too."""
    try:
        async with asyncio.timeout(_CASE_SECONDS):
            await case.run(api)
    except CaseError as error:
        return str(error)
    except TimeoutError:
        return f"no end within {_CASE_SECONDS} s"
    except (aiohttp.ClientError, LookupError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return PASS


def suite(running: Running) -> Outcomes:
    """Runs Open Responses' cases in their own environment."""
    (client,) = [client for client in CLIENTS if client.title == "Open Responses"]
    body = {"model": running.model, "temperature": 0, "max_output_tokens": 512}
    variables = {
        "ISTHMUS_URL": running.url,
        "OPENAI_API_KEY": running.key,
        "RESPONSES_BODY": json.dumps(body),
        "RESPONSES_TOOL_CHOICE": "required",
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            (client.python(), "-m", "pytest", client.source, f"--junitxml={report}"),
            cwd=client.source.parent,
            env=environment(**variables),
            stdout=subprocess.DEVNULL,
            timeout=_SUITE_SECONDS,
            check=False,
        )
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314
            name = case.attrib["name"].removeprefix("test_").replace("_", " ")
            failure = case.find("failure")
            reason = PASS if failure is None else failure.attrib["message"]
            found[f"{_SUITE}{name}"] = _SUITE_LEFT_OUT.get(name, reason)
        return found


def row(name: str, cells: Sequence[str]) -> str:
    """A row of the table in Markdown."""
    words = [re.sub(r"\s+", " ", cell).replace("|", "/")[:_REASON] for cell in cells]
    return f"| {name} | {' | '.join(words)} |"


def table(found: dict[str, Outcomes]) -> list[str]:
    """The table, with the score of each server; cases that were left out do not count."""
    servers = list(found)
    left_out = {_SUITE + name: why for name, why in _SUITE_LEFT_OUT.items()} | LEFT_OUT
    every = [name for name in found[servers[0]] if name not in left_out]
    lines = [row("case", servers), row("---", ["---"] * len(servers))]
    lines += [row(name, [found[server][name] for server in servers]) for name in every]
    for title, of_suite in (("Codex and rules", False), ("Open Responses", True)):
        names = [name for name in every if name.startswith(_SUITE) == of_suite]
        passed = [sum(found[server][name] == PASS for name in names) for server in servers]
        lines.append(row(f"passed: {title}", [f"{count} of {len(names)}" for count in passed]))
    lines += [row(name, [f"not run: {why}"] * len(servers)) for name, why in left_out.items()]
    return lines


def main() -> None:
    """Runs the cases, writes the results and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.responses", description=__doc__)
    parser.add_argument("--only", choices=("isthmus", "vllm"), help="one of the servers")
    parser.add_argument("--json", type=Path, default=RESULTS, help="default %(default)s")
    arguments = parser.parse_args()
    served = model()
    subjects: dict[str, Subject] = {
        "isthmus": IsthmusWithVllm(served),
        "vllm": VllmServe(served),
    }
    found: dict[str, Any] = {}
    for name, subject in subjects.items():
        if arguments.only in (None, name):
            with subject.start(Source()) as running:
                found[subject.name] = asyncio.run(outcomes(running, CASES)) | suite(running)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    vllm = version(packages_distributions()["vllm"][0])
    print(f"vLLM {vllm}, {served.id}, float32; written to {arguments.json}")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
