"""What a test left behind: tasks, permits, calls, sessions, files, child processes, listeners.

Looking costs less than a millisecond after a clean test. What ends by itself a moment after the
test, such as a socket that grpc closes in a thread of its own, has GRACE_SECONDS.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge.image_files import NAME_PATTERN
from edge.state import Edge
from inference.server import InferenceServer

GRACE_SECONDS = 10.0
_FILES = Path("/proc/self/fd")
_IMAGE = re.compile(rf".*/{NAME_PATTERN}")


class Leaks:
    """Compares the end of a test with its beginning; make it before the test begins."""

    def __init__(self, made: list[Any]) -> None:
        self._made = made
        made.clear()
        self._files = _open_files()
        self._children = _children()
        self._tasks = asyncio.all_tasks()

    async def after_grace(self) -> list[str]:
        """What is left GRACE_SECONDS after the test, or nothing as soon as nothing is left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + GRACE_SECONDS
        while (found := list(self._found())) and loop.time() < until:
            await asyncio.sleep(0.005)
        return found

    def _found(self) -> Iterator[str]:
        here = asyncio.current_task()
        for task in asyncio.all_tasks() - self._tasks:
            if task is not here:
                yield f"a task runs: {task.get_coro()}"
        for made in self._made:
            yield from _of_service(made) if isinstance(made, InferenceServer) else _of_edge(made)
        for number, link in _open_files().items():
            if self._files.get(number) == link:
                continue
            if _IMAGE.fullmatch(link):
                yield f"an image file is open: {link}"
            elif link.startswith("socket:") and _listens(number):
                yield f"a socket listens: {link}"
        for child in _children() - self._children:
            yield f"a child process runs: {child}"


@contextmanager
def noted() -> Iterator[list[Any]]:
    """Yields a list that gets each service and edge that is made."""
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (InferenceServer, Edge):
            patch.setattr(kind, "__init__", _noting(kind.__init__, made))
        yield made


def _noting(initialise: Callable[..., None], made: list[Any]) -> Callable[..., None]:
    def noting(self: object, *arguments: Any, **named: Any) -> None:
        initialise(self, *arguments, **named)
        made.append(self)

    return noting


def _of_service(server: InferenceServer) -> Iterator[str]:
    if server.registry.memory.used:
        yield f"the service holds {server.registry.memory}"
    if calls := server.registry.running_calls:
        yield f"{calls} calls are open in the service"
    for model in server.registry.models:
        if model.admission.running or model.admission.queued:
            yield f"{model.config.id}: {model.admission}"


def _of_edge(edge: Edge) -> Iterator[str]:
    if edge.requests or edge.exchanges:
        yield f"the edge has {edge.requests} requests and {len(edge.exchanges)} exchanges"
    if edge.memory.used:
        yield f"the edge holds {edge.memory}"
    for upstream in edge.router.upstreams:
        for replica in upstream.replicas.values():
            if replica.outstanding:
                yield f"{replica!r} has open calls"
            transport = replica._session
            if transport is not None and transport._session and not transport._session.closed:
                yield f"{replica!r} has an open session"


def _open_files() -> dict[str, str]:
    """What each file descriptor refers to; empty where the system has no /proc."""
    found = {}
    with suppress(OSError):
        for number in os.listdir(_FILES):
            with suppress(OSError):  # The one that lists the folder.
                found[number] = os.readlink(f"{_FILES}/{number}")
    return found


def _listens(number: str) -> bool:
    try:
        with socket.socket(fileno=os.dup(int(number))) as found:
            return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # It was closed meanwhile.
        return False


def _children() -> set[psutil.Process]:
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # There is none; looking at all processes would take 10 ms.
            return set()
    return set(psutil.Process().children())
