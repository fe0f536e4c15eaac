"""A text engine that answers with the messages in its last message, for tests of responses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from google.protobuf import json_format

from inference.engines.base import Emit
from isthmus.v1.generate_pb2 import GenerateResponse
from tests.clients.good_model import GoodModel


class Replaying(GoodModel):
    """The engine. A last message that is a JSON list has the GenerateResponses to send.

    Of any other request it sends what GoodModel does. `requests` has all requests, newest last.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.requests: list[Any] = []

    async def generate(self, prepared: Any, emit: Emit) -> None:
        self.requests.append(prepared.request)
        texts = ["".join(part.text for part in m.parts) for m in prepared.request.chat.messages]
        if not texts[-1].startswith("["):
            await super().generate(prepared, emit)
            return
        for part in json.loads(texts[-1]):
            emit(json_format.ParseDict(part, GenerateResponse()))
            await asyncio.sleep(0)
