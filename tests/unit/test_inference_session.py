"""When a session of the service writes without having anything to say, and when it gives up."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from inference.config import ModelConfig
from inference.engines import create_engine
from inference.registry import Registry, ServedModel
from inference.session import SessionService
from isthmus.session.v1alpha1.session_pb2 import EdgeHello, Open, SessionRequest, SessionResponse
from isthmus.v1.generate_pb2 import GenerateRequest

_HANG = '{"fail": "hang"}'


class _Wire:
    """An edge that opens one call and acknowledges nothing.

    Args:
        text: Asked for; none opens no call.
        takes: Messages that it takes; what comes later is never written.
    """

    def __init__(self, text: str | None, takes: int) -> None:
        self._takes = takes
        self._reads = [SessionRequest(hello=EdgeHello(revision=1))]
        if text is not None:
            opened = Open(call_id=1, request=GenerateRequest(model="m", text=text))
            self._reads.append(SessionRequest(opens=[opened]))
        self.written: list[tuple[float, SessionResponse]] = []

    async def read(self) -> SessionRequest | None:
        if not self._reads:
            await asyncio.Event().wait()
        return self._reads.pop(0)

    async def write(self, message: SessionResponse) -> None:
        if len(self.written) == self._takes:
            await asyncio.Event().wait()
        self.written.append((time.monotonic(), message))


async def _serve(wire: _Wire) -> None:
    config = ModelConfig(id="m", engine="scripted")
    served = ServedModel(config, create_engine(config))
    served.started = True
    await SessionService(Registry([served])).Session(None, wire)  # type: ignore[arg-type]


def test_an_admission_and_words_that_are_there_leave_together() -> None:
    wire = _Wire("x", takes=100)

    async def serve() -> None:
        await asyncio.wait([asyncio.create_task(_serve(wire))], timeout=1)

    asyncio.run(serve())
    ((_, hello), (_, first)) = wire.written[:2]
    assert hello.HasField("hello")
    (frame,) = first.frames
    assert frame.response.HasField("admitted")
    assert frame.response.deltas[0].text


@pytest.mark.parametrize(("text", "pulses"), [(_HANG, True), (None, False)])
def test_a_pulse_comes_while_a_call_has_nothing_to_say(
    text: str | None, pulses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.session.PULSE_SECONDS", 0.2)
    wire = _Wire(text, takes=100)

    async def serve() -> None:
        await asyncio.wait([asyncio.create_task(_serve(wire))], timeout=2)

    asyncio.run(serve())
    times = [at for at, message in wire.written if message == SessionResponse()]
    assert (len(times) >= 3) == pulses
    assert all(0.15 < after - at < 1 for at, after in pairwise(times))


def test_an_edge_that_takes_nothing_ends_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.session.PULSE_SECONDS", 0.1)
    monkeypatch.setattr("inference.session.WRITE_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(_serve(_Wire(_HANG, takes=2)))
    assert 0.25 < time.monotonic() - began < 5
