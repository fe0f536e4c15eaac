"""Added latency by the method of llm-gateway-bench: `python -m bench.added_latency`.

The method is that of probe/overhead.mjs in github.com/cuihuan/llm-gateway-bench: a plain chat of
one word that asks for one token goes to a mock of OpenAI, and through the gateway to such a mock,
one request at a time. After 15 requests each that are not measured, seven rounds have 25 requests
to the mock and 25 to the gateway. The added latency is the median over the rounds of the difference
between the medians of a round, with the quartiles.

Here the client is http.client with one kept connection, where theirs is Node's fetch. The upstream
of Isthmus and SMG speaks gRPC, so their figure includes what stands for the model there: the
inference process with its scripted engine, or a worker with ready messages. The row "direct" is the
mock against itself.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from bench import section, table
from bench.gateways import all_subjects
from bench.peers.openai_source import MODEL
from bench.peers.openai_upstream import token_source
from bench.subject import Running, Source, Subject

_SOURCE: Final = Source(tokens=1)
_ROUNDS: Final = 7
_REQUESTS: Final = 25
_WARM_REQUESTS: Final = 15
_TIMEOUT_SECONDS: Final = 15
_LEFT_OUT: Final = ("message-a-token",)


class Mock:
    """The subject "direct": the mock itself, once more."""

    name = table.DIRECT

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:
        """Starts the mock."""
        with token_source(source) as mock:
            yield Running(mock.url, MODEL, {"source": (mock.pid,)})


class Caller:
    """Sends the request of the method over one connection."""

    def __init__(self, running: Running) -> None:
        self._connection = http.client.HTTPConnection(
            running.url.removeprefix("http://"), timeout=_TIMEOUT_SECONDS
        )
        messages = [{"role": "user", "content": "ping"}]
        request = {"model": running.model, "messages": messages, "max_tokens": 1}
        self._body = json.dumps(request).encode()
        self._headers = {"Content-Type": "application/json"}
        if running.key:
            self._headers["Authorization"] = f"Bearer {running.key}"

    def times(self, requests: int) -> list[float]:
        """Sends requests one after another; returns the milliseconds of each.

        Raises:
            ValueError: A response has another status than 200, or no message.
        """
        found = []
        for _ in range(requests):
            began = time.perf_counter()
            self._connection.request("POST", "/v1/chat/completions", self._body, self._headers)
            response = self._connection.getresponse()
            document = response.read()
            found.append(1000 * (time.perf_counter() - began))
            if response.status != 200 or b'"message"' not in document:
                raise ValueError(f"status {response.status}: {document[:200]!r}")
        return found


def one_pass(repeat: int, subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """Measures each gateway; yields an entry of the raw figures for each."""
    for subject in section.in_turn(subjects, repeat):
        rounds: list[dict[str, list[float]]] = []
        errors: dict[str, int] = {}
        try:
            with token_source(_SOURCE) as mock, subject.start(_SOURCE) as running:
                rounds += measured(Caller(Running(mock.url, MODEL, {})), Caller(running))
        except Exception as error:  # a gateway that fails must not end the others
            errors[f"{type(error).__name__}: {error}"] = 1
        yield {
            "repeat": repeat,
            "scenario": "added latency",
            "subject": subject.name,
            "void": bool(errors),
            "figures": verdict(rounds) if rounds else {},
            "result": {"errors": errors, "rounds": rounds},
        }


def measured(direct: Caller, gateway: Caller) -> Iterator[dict[str, list[float]]]:
    """The milliseconds of each request of each round."""
    for caller in (direct, gateway):
        caller.times(_WARM_REQUESTS)
    for _ in range(_ROUNDS):
        yield {"direct": direct.times(_REQUESTS), "gateway": gateway.times(_REQUESTS)}


def verdict(rounds: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """The figures of the method, in milliseconds."""
    direct = [float(np.median(each["direct"])) for each in rounds]
    gateway = [float(np.median(each["gateway"])) for each in rounds]
    added = np.subtract(gateway, direct)
    lower, middle, upper = map(float, np.percentile(added, (25, 50, 75)))
    return {
        "direct_ms": float(np.median(direct)),
        "gateway_ms": float(np.median(gateway)),
        "added_ms": middle,
        "added_lower_ms": lower,
        "added_upper_ms": upper,
    }


def rows(results: table.Results) -> list[list[str]]:
    """The table: the figures over the rounds of all passes."""
    found = [["gateway", "direct ms", "through it ms", "added ms", "quartiles"]]
    for subject in results.subjects():
        runs = [run for run in results.runs if run["subject"] == subject and not run["void"]]
        rounds = [each for run in runs for each in run["result"]["rounds"]]
        if rounds:
            one = verdict(rounds)
            spread = f"{one['added_lower_ms']:.2f} to {one['added_upper_ms']:.2f}"
            names = ("direct_ms", "gateway_ms", "added_ms")
            found.append([subject, *(f"{one[name]:.2f}" for name in names), spread])
    return found


def main() -> None:
    """Measures, writes the results and prints the table."""
    options = section.parser("added_latency", __doc__, repeats=3).parse_args()
    known = {**all_subjects(), "direct": Mock()}
    subjects = [subject for name, subject in known.items() if name not in _LEFT_OUT]
    entries = (entry for repeat in section.passes(options) for entry in one_pass(repeat, subjects))
    results = section.record(entries, options)
    print("\n" + table.render(rows(results)))
    print(f"\nEvery raw figure: {options.json}")
    section.end(table.faults(results))


if __name__ == "__main__":
    main()
