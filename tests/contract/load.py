"""Streams and loads that several tests of the bars make, and what they measured."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientConnectionError, ClientPayloadError, ClientSession

# On a noisy machine, a bound of time is five times that of the bar.
SLACK = 5


class TooSlowError(AssertionError):
    """A bound of time that did not hold.

    pytest runs such a test again, at most twice (pyproject.toml): another load on the machine
    delays one run, a defect delays each. Any other failure counts at once.
    """


def check_seconds(seconds: float, bar: float, wait: float = 0.0) -> None:
    """Raises TooSlowError if `seconds` are more than `wait` and SLACK times the bar, in seconds.

    Args:
        wait: What the test itself configures, such as a timeout; it has no slack.
    """
    if seconds > wait + SLACK * bar:
        raise TooSlowError(f"{seconds:.3f} s, allowed are {wait} s + {SLACK} x {bar} s")


@dataclass
class Stream:
    """What a streamed completion sent, and when.

    Attributes:
        text: The joined text.
        ended: "done", "error" (an error event), "cut", or "" while it goes on.
        arrivals: Seconds of time.monotonic() at which text arrived.
    """

    started: float = field(default_factory=time.monotonic)
    status: int = 0
    text: str = ""
    ended: str = ""
    error: str = ""
    ended_at: float = 0.0
    arrivals: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds to the first text."""
        return self.arrivals[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between texts."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]

    async def read(self, http: ClientSession, cue: dict[str, Any], url: str = "") -> Stream:
        """Sends the request and reads its whole response."""
        body = {"model": "scripted", "prompt": json.dumps(cue), "stream": True, "max_tokens": 4000}
        try:
            async with http.post(f"{url}/v1/completions", json=body) as response:
                self.status = response.status
                async for line in response.content:
                    self._take(line)
        except (ClientConnectionError, ClientPayloadError):
            self.ended = self.ended or "cut"
        self.ended = self.ended or "cut"
        self.ended_at = time.monotonic()
        return self

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data: [DONE]"):
            assert not self.ended
            self.ended = "done"
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                assert not self.ended
                self.ended, self.error = "error", event["error"]["message"]
            elif text := "".join(choice["text"] for choice in event["choices"]):
                self.text += text
                self.arrivals.append(time.monotonic())


def words(count: int) -> str:
    """The text of a scripted engine."""
    return "".join(f"w{n} " for n in range(count))


async def streams(http: ClientSession, count: int, cue: dict[str, Any]) -> list[Stream]:
    """Runs streams at the same time and checks that each has its whole text."""
    done = await asyncio.gather(*(Stream().read(http, cue) for _ in range(count)))
    assert [s.ended for s in done] == ["done"] * count
    assert {s.text for s in done} == {words(cue["tokens"])}
    return done


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def percentile_of_gaps(found: Sequence[Stream]) -> float:
    """The 99th percentile of the time between two texts of a stream."""
    return p99([gap for stream in found for gap in stream.gaps])


async def until(stop: asyncio.Event, clients: int, ask: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Lets so many clients ask one after the other until `stop`; returns all results."""
    results: list[Any] = []

    async def client() -> None:
        while not stop.is_set():
            results.append(await ask())

    await asyncio.gather(*(client() for _ in range(clients)))
    return results


def measured(figures: str) -> None:
    """Prints figures, which `pytest -rP -k test_bars` shows for docs/reliability.md."""
    print("measured:", figures)
