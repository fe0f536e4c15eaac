"""Two machines on one: network namespaces with a cable between them, and shared memory apart.

Also what runs in the place of a worker of vLLM.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

# Waits until its standard input ends, which it does with the test.
_WAIT = ("sh", "-c", "echo; exec cat")


@dataclass(frozen=True)
class Machine:
    """A place for programs.

    Attributes:
        address: Its address for the other machine.
        prefix: The command that runs a program there.
    """

    address: str
    prefix: tuple[str, ...] = ()

    def run(self, *command: str) -> str:
        """The output of the command."""
        return subprocess.run(
            [*self.prefix, *command], check=True, capture_output=True, text=True, timeout=10
        ).stdout

    def shared_memory(self) -> str:
        """The names of its shared memory; empty where it is that of the whole machine."""
        return self.run("ls", "/dev/shm") if self.prefix else ""


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Namespaces with the addresses 10.0.0.1 and 10.0.0.2; twice 127.0.0.1 if none can be made."""
    with ExitStack() as ends:
        try:
            machines = _namespaces(ends)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"no namespaces, so loopback addresses: {error}")
            machines = Machine("127.0.0.1"), Machine("127.0.0.1")
        yield machines


def _namespaces(ends: ExitStack) -> tuple[Machine, Machine]:
    first = _hold(ends, "unshare", "--map-root-user", "--net", "--mount", *_WAIT)
    enter = ("nsenter", "--preserve-credentials", "--user", "--net", "--mount", "--target")
    head = Machine("10.0.0.1", (*enter, str(first)))
    second = _hold(ends, *head.prefix, "unshare", "--net", "--mount", *_WAIT)
    follower = Machine("10.0.0.2", (*enter, str(second)))
    cable = ("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns")
    head.run(*cable, str(second))
    for machine in (head, follower):
        machine.run("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")
        machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "cable")
        for device in ("lo", "cable"):
            machine.run("ip", "link", "set", device, "up")
    return head, follower


def _hold(ends: ExitStack, *command: str) -> int:
    """Starts a process that keeps a namespace, and returns its id once it is in it."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    ends.enter_context(process)
    ends.callback(process.kill)
    if process.stdout is None or not process.stdout.readline():
        raise subprocess.SubprocessError(f"{command[0]} failed")
    return process.pid


def alive(sessions: Sequence[int]) -> list[str]:
    """The processes of these sessions that have not ended, as text."""
    listed = subprocess.run(
        ["ps", "-eo", "sid=,pid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()]
    return [" ".join(row) for row in rows if int(row[0]) in sessions and not row[2].startswith("Z")]


def sleep_on(ready: Connection) -> None:
    """A process that does not end with SIGTERM. It is here because it imports this module."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.send(True)
    time.sleep(600)
