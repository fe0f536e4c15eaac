"""A generation that moves to another replica if its own turned it away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import grpc
from google.rpc import status_pb2
from msgspec.structs import replace

from edge.openai.errors.rpc_status import reason_of
from edge.upstream.replica import Replica
from edge.upstream.transport import Call, CallOptions, Receiver
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse

_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE.value[0]
# What a service says when it has not begun; a request that kills engines must not be passed on.
TURNED_AWAY: Final = frozenset({"draining", "engine_unavailable", "queue_timeout"})


class RoutedCall(Call, Receiver):
    """Replays an open at most once, and never after it was admitted.

    Args:
        replica: Where it starts.
        another: Finds a replica other than the one that failed.
        request, receiver, options: Of the generation.
    """

    __slots__ = (
        "_another",
        "_call",
        "_deadline",
        "_heard",
        "_options",
        "_receiver",
        "_replica",
        "_request",
    )

    def __init__(
        self,
        replica: Replica,
        another: Callable[[Replica], Replica | None],
        request: GenerateRequest,
        receiver: Receiver,
        options: CallOptions,
    ) -> None:
        self._another = another
        self._request = request
        self._receiver = receiver
        self._options = options
        self._deadline = time.monotonic() + options.timeout_seconds
        self._heard = False
        self._start(replica, options)

    def on_text(self, text: str) -> None:
        """Passes it on."""
        self._receiver.on_text(text)

    def on_part(self, part: GenerateResponse) -> None:
        """Passes it on; from the first part on the call stays where it is."""
        self._heard = True
        self._receiver.on_part(part)

    def on_end(self, status: status_pb2.Status) -> None:
        """Starts again elsewhere if nothing can have happened yet, or passes it on."""
        failed = self._release()
        if failed is not None:
            failed.note(status)
            other = self._another(failed) if self._may_move(status) else None
            remaining = self._deadline - time.monotonic()
            if other is not None and remaining > 0:
                self._heard = True  # once only
                self._start(other, replace(self._options, timeout_seconds=remaining))
                return
        self._receiver.on_end(status)

    def cancel(self) -> None:
        """Stops it wherever it runs."""
        if self._release() is not None:
            self._call.cancel()

    def _start(self, replica: Replica, options: CallOptions) -> None:
        self._replica: Replica | None = replica
        replica.outstanding += 1
        self._call = replica.open(self._request, self, options)

    def _release(self) -> Replica | None:
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.outstanding -= 1
        return replica

    def _may_move(self, status: status_pb2.Status) -> bool:
        if status.code != _UNAVAILABLE or self._heard:
            return False
        reason = reason_of(status)
        # A plain answer is heard of only when it is complete: whether a lost one was admitted
        # cannot be known, so it moves only when the service says that it has not begun.
        lost_unheard = reason is None and not self._request.output.single_message
        return lost_unheard or reason in TURNED_AWAY
