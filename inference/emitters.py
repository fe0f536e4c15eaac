"""Adds to an engine's output what the service knows: admission, timings, rate limits.

One class for each kind of request. They keep what a call has used up to now, for the charge of its
key and for the metrics, also of a call that ends early.
"""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

from contract.memory import Holding
from contract.request_metrics import Spent
from inference.engines.base import Part, Prepared, Request
from inference.rate_limits import Charge
from inference.registry import ServedModel
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.tokenize_pb2 import TokenizeResponse
from isthmus.v1.usage_pb2 import Admitted, Usage


class AnyOutbox(Protocol):
    """Receives output; neither method blocks. An exception from them ends the call."""

    holding: Holding

    def text(self, text: str) -> None:
        """Adds plain text of choice 0."""

    def part(self, part: Any) -> None:
        """Adds any other message, which is not changed afterwards."""


class Emitter:
    """Adds admission, timings and rate limits to an engine's output, and counts tokens.

    It updates `charge` with each output, so that a call that ends early is charged for it.

    Attributes:
        spent: What the call used; set with its last part, the one with the usage.
        finishes: The finish reasons of its choices.
    """

    def __init__(
        self,
        served: ServedModel,
        request: Request,
        outbox: AnyOutbox,
        charge: Charge,
        arrived: float,
        permitted: float,
    ) -> None:
        self.served = served
        self.request = request
        self.outbox = outbox
        self.charge = charge
        self.arrived = arrived
        self.admitted = permitted
        self.first_output: float | None = None
        self.outputs = 0  # Changes with each output (stall.py).
        self.spent: Spent | None = None
        self.finishes: list[int] = []

    def admit(self, prepared: Prepared) -> None:
        self.admitted = time.monotonic()
        admitted = Admitted(
            call_id=os.urandom(16).hex(),
            model=self.served.config.id,
            requested_model=self.request.model,
            created=int(time.time()),
            prompt_tokens=prepared.prompt_tokens,
            system_fingerprint=self.served.engine.system_fingerprint,
            rate_limits=self.charge.rate_limits(),
        )
        self.outbox.part(self.admission(admitted, prepared))

    def admission(self, admitted: Admitted, prepared: Any) -> Part:
        raise NotImplementedError

    def emit(self, output: Any) -> None:
        raise NotImplementedError

    def finish(self, last: GenerateResponse | GenerateImageResponse) -> Spent:
        """Adds the milliseconds of each stage to the part with the usage; returns `spent`."""
        now = time.monotonic()
        first = self.first_output or now
        usage, arrived = last.usage, self.arrived
        spent = self.spent = Spent(
            usage.prompt_tokens, usage.completion_tokens, first - arrived, now - arrived
        )
        timings = last.timings
        timings.queue_ms = (self.admitted - arrived) * 1000
        timings.first_output_ms = (first - self.admitted) * 1000
        timings.total_ms = (now - arrived) * 1000
        return spent


class TextEmitter(Emitter):
    def admission(self, admitted: Admitted, prepared: Any) -> Part:
        request: Any = self.request
        ids = prepared.prompt_token_ids if request.output.prompt_token_ids else ()
        return GenerateResponse(admitted=admitted, prompt_token_ids=ids)

    def emit(self, output: str | GenerateResponse) -> None:
        """Counts one token for each piece until the usage has the exact number."""
        self.outputs += 1
        if self.first_output is None:
            self.first_output = time.monotonic()
        if isinstance(output, str):
            self.charge.used_tokens += 1
            self.outbox.text(output)
            return
        if output.HasField("usage"):
            spent = self.finish(output)
            self.charge.used_tokens = spent.input_tokens + spent.output_tokens
        else:
            self.charge.used_tokens += len(output.deltas)
        self.finishes += (finish.reason for finish in output.finishes)
        self.outbox.part(output)


class ImageEmitter(Emitter):
    def admission(self, admitted: Admitted, prepared: Any) -> Part:  # noqa: ARG002
        return GenerateImageResponse(admitted=admitted)

    def emit(self, output: GenerateImageResponse) -> None:
        self.outputs += 1
        if self.first_output is None:
            self.first_output = time.monotonic()
        if output.HasField("usage"):
            self.finish(output)
        self.outbox.part(output)


class EmbeddingEmitter(Emitter):
    """Embed sends one message and no separate admission."""

    def admit(self, prepared: Prepared) -> None:
        pass

    def emit(self, output: EmbedResponse) -> None:
        tokens = self.charge.used_tokens = sum(output.token_counts)
        output.model = self.served.config.id
        output.usage.CopyFrom(Usage(prompt_tokens=tokens))
        total = time.monotonic() - self.arrived
        output.timings.queue_ms = (self.admitted - self.arrived) * 1000
        output.timings.total_ms = total * 1000
        self.spent = Spent(tokens, 0, total, total)
        # Settle first, so that the response has the limits that remain after this call.
        self.charge.settle()
        if (limits := self.charge.rate_limits()) is not None:
            output.rate_limits.CopyFrom(limits)
        self.outbox.part(output)


class TokensEmitter(Emitter):
    """Tokenize sends one message and no separate admission, and uses no tokens of the key."""

    def admit(self, prepared: Prepared) -> None:
        pass

    def emit(self, output: TokenizeResponse) -> None:
        output.model = self.served.config.id
        if (limits := self.charge.rate_limits()) is not None:
            output.rate_limits.CopyFrom(limits)
        self.outbox.part(output)
