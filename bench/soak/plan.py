"""A request of the soak, and the answer that the scripted engines must give to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

TEXT_MODEL: Final = "text"
EMBEDDING_MODEL: Final = "vectors"
IMAGE_MODEL: Final = "images"
DIMENSIONS: Final = 256
IMAGE_STEPS: Final = 4
# Pixels of each side of an image.
IMAGE_SIDE: Final = 64
# Seconds between two engine steps: a token takes so long, and so does a step of an image.
STEP_SECONDS: Final = 0.04

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
IMAGES: Final = "/v1/images/generations"
MODELS: Final = "/v1/models"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
TOKENIZE: Final = "/tokenize"
DETOKENIZE: Final = "/detokenize"
GRPC: Final = "Generate"


@dataclass(frozen=True)
class Plan:
    """A request and its answer.

    Attributes:
        number: Unique within a run.
        kind: The kind of request, for the report.
        path: The path of the REST request; GRPC for a direct call.
        body: The JSON of the request; None for a GET.
        choices: The words of each choice, in the order of the indexes.
        finish: The finish_reason of each choice.
        prompt_tokens, completion_tokens: The usage.
        fail: The failure that the cue asks for; "" for none.
        inputs: The texts of an embedding request.
        seeds: The seed of each image.
        previews: The number of previews of each image.
        executions: Names under which engines note the request, one for each call that it needs.
        seconds: About how long the answer takes on an idle machine.
        then: What follows a success, at the same edge, and refers to its response.
        since: When the response that this one refers to was asked for: seconds of
            time.monotonic().
    """

    number: int
    kind: str
    path: str
    body: dict[str, Any] | None = None
    choices: tuple[tuple[str, ...], ...] = ()
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fail: str = ""
    inputs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    previews: int = 0
    executions: tuple[str, ...] = ()
    seconds: float = 0.05
    then: Plan | None = None
    since: float = math.inf

    def referring_to(self, response_id: str, since: float) -> Plan:
        """Returns this request with the id of the response that it reads or continues."""
        if self.body is None:
            return replace(self, path=f"{RESPONSES}/{response_id}", since=since)
        return replace(self, body=self.body | {"previous_response_id": response_id}, since=since)

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return self.path == GRPC or bool(self.body and self.body.get("stream"))

    @property
    def request_id(self) -> str:
        """The x-request-id."""
        return f"soak-{self.number}"
