"""`python -m bench.soak`: runs everything for minutes while parts fail, and checks every answer.

Two inference services with scripted engines stand behind two edges. 32 clients send requests of
all kinds, and cancel a fifth of them. Faults follow a seeded schedule (faults.py). Each answer is
compared with what the engine must have said (judge.py), and the executions are counted (ledger.py).

The exit status is 1 if a request was lost, duplicated, corrupted or misdelivered, or if one failed
during a clean stop of one service. build/soak/report.json has all figures, and build/soak/NAME.log
what each program printed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from bench.processes import ROOT
from bench.soak import report
from bench.soak.client import Client
from bench.soak.faults import Faults
from bench.soak.judge import CLASSES, Answer, Verdict, judge, response_id
from bench.soak.ledger import Executions, count
from bench.soak.plan import GRPC, Plan
from bench.soak.plans import Planner
from bench.soak.record import Record
from bench.soak.resources import YOUNG_SECONDS, Sampler
from bench.soak.stack import EDGES, SERVICES, Stack, running, unexpected_exceptions

_FOLDER: Final = ROOT / "build" / "soak"
# Clients, each with one request at a time, and their longest pause between two, in seconds. With
# the engines' pace this is about 35 requests a second, which two cores serve with ease.
_CLIENTS: Final = 32
_THINK_SECONDS: Final = 0.8
_CANCELLED_SHARE: Final = 0.2
_SECOND_KEY_SHARE: Final = 0.15
_SAMPLE_SECONDS: Final = 2.0
_PROGRESS_SECONDS: Final = 10.0
# Seconds in which connections close before the last look at open files.
_SETTLE_SECONDS: Final = 3.0


class StoppedError(Exception):
    """The programs are being stopped before the time is over, most likely by Ctrl-C."""


class Soak:
    """One run against a stack.

    Args:
        stack: The programs.
        client: Connections to them.
        seed: Of all choices.
    """

    def __init__(self, stack: Stack, client: Client, seed: int) -> None:
        self._stack = stack
        self._client = client
        self._chance = random.Random(seed)
        self._planner = Planner(random.Random(seed + 1))
        self._streams: dict[str, bool] = {}
        self._over = False
        self.record = Record()
        self.sampler = Sampler()
        self.faults = Faults(stack, random.Random(seed + 2), self._read_slowly)
        self.seconds = 0.0
        self.executions = Executions()

    async def run(self, seconds: float, console: Console) -> None:
        """Sends requests and applies faults for so many seconds."""
        await asyncio.sleep(YOUNG_SECONDS)
        self._look()
        begin = time.monotonic()
        background = [
            asyncio.create_task(self._progress(console, begin)),
            asyncio.create_task(self._sample()),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_CLIENTS):
                    group.create_task(self._send_until_over())
                ended = group.create_task(self._end_with_the_programs())
                await self.faults.run(seconds)
                self._over = True
                ended.cancel()
        finally:
            self.seconds = time.monotonic() - begin
            for task in background:
                task.cancel()

    def finish(self) -> None:
        """Takes the last samples, and reads the logs and what the engines executed."""
        self._look()
        self.faults.notes += unexpected_exceptions(_FOLDER)
        lines = self._stack.ledger.read_text(encoding="utf-8").splitlines()
        self.executions = count(lines, self.faults.deaths, self._streams)
        for text in self.executions.wrong:
            self.record.problem("duplicated", text)

    async def _send_until_over(self) -> None:
        chance = self._chance
        await asyncio.sleep(chance.uniform(0, _THINK_SECONDS))
        while not self._over:
            plan = self._planner.next()
            leaves = chance.random() < _CANCELLED_SHARE
            cancel_after = chance.uniform(0.001, 1.2 * plan.seconds + 0.02) if leaves else 0.0
            target = chance.choice(SERVICES if plan.path == GRPC else EDGES)
            second = chance.random() < _SECOND_KEY_SHARE
            answer, verdict = await self._send(
                plan, target, cancel_after=cancel_after, second=second
            )
            while plan.then is not None and verdict.outcome == "ok" and not verdict.problems:
                plan = plan.then.referring_to(response_id(answer), answer.began)
                answer, verdict = await self._send(plan, target, second=second)
            await asyncio.sleep(chance.uniform(0, _THINK_SECONDS))

    async def _end_with_the_programs(self) -> None:
        await self._stack.stopping.wait()
        raise StoppedError

    async def _read_slowly(self, edge: str) -> None:
        await self._send(self._planner.long_stream(), edge, slow=True)

    async def _send(
        self,
        plan: Plan,
        target: str,
        *,
        cancel_after: float = 0.0,
        second: bool = False,
        slow: bool = False,
    ) -> tuple[Answer, Verdict]:
        for name in plan.executions:
            self._streams[name] = plan.streams and plan.kind != "image stream"
        key = self._stack.second_key if second else self._stack.key
        answer = await self._client.send(plan, target, key, cancel_after=cancel_after, slow=slow)
        verdict = judge(plan, answer)
        if not self._stack.stopping.is_set():
            self.record.add(plan, answer, verdict, target, self.faults.windows, second=second)
        return answer, verdict

    def _look(self) -> None:
        self.sampler.look({name: child.pid for name, child in self._stack.children.items()})

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            self._look()

    async def _progress(self, console: Console, begin: float) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            record, outcomes = self.record, self.record.outcomes
            total = sum(outcomes.values())
            ok = sum(count for (_, what), count in outcomes.items() if what == "ok")
            classes = ", ".join(f"{record.classes[name]} {name}" for name in CLASSES)
            recent = [
                f"{window.kind} {window.target}"
                for window in self.faults.windows
                if window.end > time.monotonic() - _PROGRESS_SECONDS
            ]
            console.print(
                f"{time.monotonic() - begin:5.0f} s  {total} requests, {ok} ok,"
                f" {len(record.failures)} failed ({len(record.unexplained)} unexplained);"
                f" {classes}; {', '.join(recent) or 'no fault'}",
                soft_wrap=True,
                highlight=False,
            )


async def _run(minutes: float, seed: int, console: Console) -> int:
    with tempfile.TemporaryDirectory() as name:
        async with running(Path(name), _FOLDER) as stack:
            async with Client(stack.edges, stack.services) as client:
                soak = Soak(stack, client, seed)
                # The report covers the time before the interrupt.
                try:
                    await soak.run(minutes * 60, console)
                except* StoppedError:
                    pass
            await asyncio.sleep(_SETTLE_SECONDS)
            soak.finish()
    made = report.build(
        soak.record,
        soak.faults,
        soak.sampler,
        soak.executions,
        seed=seed,
        seconds=soak.seconds,
        stopped=stack.ended.result() == 0,
    )
    report.write(made, _FOLDER / "report.json")
    print(report.markdown(made))
    return 1 if report.failed(made) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the soak; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="default %(default)g")
    parser.add_argument("--seed", type=int, default=1, help="of requests and faults (default 1)")
    arguments = parser.parse_args(argv)
    # The table on stdout can be pasted into a document, so progress goes to stderr.
    return asyncio.run(_run(arguments.minutes, arguments.seed, Console(stderr=True)))


if __name__ == "__main__":
    sys.exit(main())
