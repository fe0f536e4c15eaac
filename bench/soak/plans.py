"""The soak's requests, each with the answer that the scripted engines must give to it.

A text request carries its whole answer in its cue: words such as "q17p0.3", which name the request
(17), its prompt (0) and their own position (3). So an answer shows by itself whether a word is
missing, stands twice or belongs to another request. An image request has a seed of its own, which
sets the colours, and an embedding request has texts of its own, whose hashes are the vectors.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
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
GRPC: Final = "Generate"

# The share of each kind of request, in percent.
_WEIGHTS: Final = {
    "chat": 16,
    "chat stream": 28,
    "completion": 8,
    "completion stream": 12,
    "embedding of 1": 8,
    "embedding of 64": 4,
    "image": 5,
    "image stream": 5,
    "models": 6,
    "Generate": 8,
}
# The share of text and image requests whose engine fails by their own cue.
_FAULT_SHARE: Final = 0.04
_TEXT_FAULTS: Final = ("start", "mid", "late", "refuse")
_IMAGE_FAULTS: Final = ("start", "mid", "late")
# Ends of words that JSON must escape or UTF-8 encodes in several bytes.
_ENDINGS: Final = ("", "", "", "\u00e9", '"', "\\", "\U0001f600", "</a>", "\u4e16")
# Seeds differ in their low 24 bits, which are the colours; an odd factor keeps them distinct.
_SEED_FACTOR: Final = 0x9E3779B1


@dataclass(frozen=True)
class Plan:
    """A request and its answer.

    Attributes:
        number: Unique within a run.
        kind: A key of the weights above, for the report.
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

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return self.path == GRPC or bool(self.body and self.body.get("stream"))

    @property
    def request_id(self) -> str:
        """The x-request-id."""
        return f"soak-{self.number}"


class Planner:
    """Makes a random mix of requests.

    Args:
        chance: The source of all choices.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._last = 0

    def next(self) -> Plan:
        """Returns the next request of the mix."""
        kind = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        number = self._number()
        if kind == "models":
            one = f"{MODELS}/{TEXT_MODEL}"
            return Plan(number, kind, self._chance.choice((MODELS, one)))
        if kind.startswith("embedding"):
            return self._embedding(number, kind, 1 if kind.endswith(" 1") else 64)
        if kind.startswith("image"):
            return self._image(number, kind)
        return self._text(number, kind)

    def long_stream(self) -> Plan:
        """Returns a streamed chat with an answer of 1 to 8 MB, for a client that reads slowly.

        The largest is more than what sockets and the edge hold for a client.
        """
        number = self._number()
        count, choices = self._chance.choice(((1000, 2), (2000, 2), (2000, 8)))
        words = tuple(f"q{number}p0.{position}{'x' * 300}" for position in range(count))
        cue = json.dumps({"text": " ".join(words), "tokens_per_step": 100})
        messages = [{"role": "user", "content": cue}]
        body = {"model": TEXT_MODEL, "messages": messages, "n": choices, "stream": True}
        return Plan(
            number,
            "slow reader",
            CHAT,
            body,
            (words,) * choices,
            prompt_tokens=len(cue.split()),
            completion_tokens=choices * count,
            executions=(f"q{number}p0",),
            seconds=4.0,
        )

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _fault(self, kinds: tuple[str, ...]) -> str:
        return self._chance.choice(kinds) if self._chance.random() < _FAULT_SHARE else ""

    def _text(self, number: int, kind: str) -> Plan:
        chance = self._chance
        fail = self._fault(_TEXT_FAULTS)
        per_step = chance.choice((1, 1, 1, 2, 5))
        choices = chance.choice((1, 1, 1, 2, 3)) if kind != "Generate" else 1
        prompts = chance.choice((1, 1, 2)) if kind.startswith("completion") else 1
        count = chance.randint(6, 40)
        limit = chance.randint(3, count - 1) if chance.random() < 0.2 else None
        cues, texts = [], []
        for prompt in range(prompts):
            words = tuple(
                f"q{number}p{prompt}.{position}{chance.choice(_ENDINGS)}"
                for position in range(count)
            )
            script = {"text": " ".join(words), "tokens_per_step": per_step}
            cues.append(json.dumps(script | ({"fail": fail} if fail else {})))
            texts += [words[:limit]] * choices
        # Without max_tokens a completion ends after 16 tokens.
        body: dict[str, Any] = {"model": TEXT_MODEL, "n": choices, "max_tokens": limit or 100}
        prompt_tokens = sum(len(cue.split()) for cue in cues)
        if kind.startswith("completion"):
            body["prompt"] = cues if prompts > 1 else cues[0]
        else:
            body["messages"] = [{"role": "user", "content": cues[0]}]
            if chance.random() < 0.3:
                body["messages"].insert(0, {"role": "system", "content": "Repeat the cue."})
                prompt_tokens += 3
        if kind.endswith("stream"):
            body["stream"] = True
            if chance.random() < 0.5:
                body["stream_options"] = {"include_usage": True}
        path = CHAT if kind.startswith("chat") else COMPLETIONS
        return Plan(
            number,
            kind,
            GRPC if kind == "Generate" else path,
            body,
            tuple(texts),
            finish="stop" if limit is None else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(map(len, texts)),
            fail=fail,
            executions=tuple(f"q{number}p{prompt}" for prompt in range(prompts)),
            seconds=len(texts[0]) / per_step * STEP_SECONDS,
        )

    def _embedding(self, number: int, kind: str, count: int) -> Plan:
        inputs = tuple(f"q{number}p0.{position} soak" for position in range(count))
        body = {
            "model": EMBEDDING_MODEL,
            "input": list(inputs) if count > 1 else inputs[0],
            "encoding_format": self._chance.choice(("float", "base64")),
        }
        return Plan(
            number,
            kind,
            EMBEDDINGS,
            body,
            prompt_tokens=2 * count,
            inputs=inputs,
            executions=(f"q{number}p0",),
        )

    def _image(self, number: int, kind: str) -> Plan:
        fail = self._fault(_IMAGE_FAULTS)
        prompt = json.dumps({"fail": fail}) if fail else f"a gradient for request {number}"
        count = self._chance.choice((1, 1, 2))
        seed = number << 24 | (number * _SEED_FACTOR & 0xFFFFF0)
        body: dict[str, Any] = {"model": IMAGE_MODEL, "prompt": prompt, "n": count, "seed": seed}
        side = f"{IMAGE_SIDE}x{IMAGE_SIDE}"
        body |= {"response_format": "b64_json", "size": side, "steps": IMAGE_STEPS}
        previews = 0
        if kind.endswith("stream"):
            previews = self._chance.randint(0, 3)
            del body["response_format"]
            body |= {"stream": True, "partial_images": previews}
        return Plan(
            number,
            kind,
            IMAGES,
            body,
            prompt_tokens=len(prompt.split()),
            fail=fail,
            seeds=tuple(range(seed, seed + count)),
            previews=previews,
            executions=(f"s{seed}",),
            seconds=IMAGE_STEPS * STEP_SECONDS,
        )
