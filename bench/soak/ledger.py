"""Finds requests that were executed twice, in the file that the services write (service.py)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Death:
    """A SIGKILL.

    Attributes:
        pid: The process.
        at: When it was killed: seconds of time.monotonic().
        unsent_since: Outputs from then on may not have reached an edge.
    """

    pid: int
    at: float
    unsent_since: float


@dataclass
class _Execution:
    began: float
    pid: int
    output_at: float | None = None


@dataclass
class Executions:
    """The record of all executions in the services.

    Attributes:
        total: Number of executions.
        moved: Number of streams that were rightly executed again.
        wrong: A text about each request that was wrongly executed again.
    """

    total: int = 0
    moved: int = 0
    wrong: list[str] = field(default_factory=list)


def count(lines: Iterable[str], deaths: Iterable[Death], streams: Mapping[str, bool]) -> Executions:
    """Counts the executions of a ledger.

    A stream may be executed again, once, if its first execution had no output or was killed just
    after its first output. Any other request may not.

    Args:
        lines: Lines of the ledger.
        deaths: Each SIGKILL of a service.
        streams: Whether each execution's request is a stream.
    """
    by_pid = {death.pid: death for death in deaths}
    executions: defaultdict[str, list[_Execution]] = defaultdict(list)
    for line in lines:
        mark, name, at, pid = line.split()
        if mark == "B":
            executions[name].append(_Execution(float(at), int(pid)))
            continue
        own = [one for one in executions[name] if one.pid == int(pid)]
        own[-1].output_at = float(at)
    found = Executions(sum(map(len, executions.values())))
    for name, runs in executions.items():
        if len(runs) < 2:
            continue
        may_move = streams.get(name, False) and len(runs) == 2
        if may_move and _lost(runs[0], by_pid.get(runs[0].pid)):
            found.moved += 1
        else:
            found.wrong.append(f"{name} was executed {len(runs)} times: {runs}")
    return found


def _lost(run: _Execution, death: Death | None) -> bool:
    """Whether an execution may have ended before the edge received anything of it."""
    if run.output_at is None:
        return True
    return death is not None and death.unsent_since <= run.output_at <= death.at
