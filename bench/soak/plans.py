"""The soak's requests, each with the answer that the scripted engines must give to it.

A text request carries its whole answer in its cue: words such as "q17p0.3", which name the request
(17), its prompt (0) and their own position (3). So an answer shows by itself whether a word is
missing, stands twice or belongs to another request. An image request has a seed of its own, which
sets the colours, and an embedding request has texts of its own, whose hashes are the vectors.

A stored response is continued, and then the continuation is read: three requests to the same edge.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any, Final

from bench.soak.plan import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDING_MODEL,
    EMBEDDINGS,
    GRPC,
    IMAGE_MODEL,
    IMAGE_SIDE,
    IMAGE_STEPS,
    IMAGES,
    MESSAGES,
    MODELS,
    RESPONSES,
    STEP_SECONDS,
    TEXT_MODEL,
    TOKENIZE,
    Plan,
)

# The share of each kind of request, in percent.
_WEIGHTS: Final = {
    "chat": 10,
    "chat stream": 18,
    "completion": 5,
    "completion stream": 8,
    "response": 5,
    "response stream": 9,
    "response stored": 4,
    "message": 4,
    "message stream": 7,
    "tokens": 3,
    "embedding of 1": 6,
    "embedding of 64": 3,
    "image": 4,
    "image stream": 4,
    "models": 4,
    "Generate": 6,
}
# The path of each kind of text request, by the first word of its name.
_PATHS: Final = {
    "chat": CHAT,
    "completion": COMPLETIONS,
    "response": RESPONSES,
    "message": MESSAGES,
    "Generate": GRPC,
}
# The share of text and image requests whose engine fails by their own cue.
_FAULT_SHARE: Final = 0.04
_TEXT_FAULTS: Final = ("start", "mid", "late", "refuse")
_IMAGE_FAULTS: Final = ("start", "mid", "late")
# Ends of words that JSON must escape or UTF-8 encodes in several bytes.
_ENDINGS: Final = ("", "", "", "\u00e9", '"', "\\", "\U0001f600", "</a>", "\u4e16")
# Seeds differ in their low 24 bits, which are the colours; an odd factor keeps them distinct.
_SEED_FACTOR: Final = 0x9E3779B1


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
        if kind == "tokens":
            return self._tokens(number)
        if kind == "response stored":
            return self._stored(number)
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
        face = kind.split()[0]
        path = _PATHS[face]
        choices = chance.choice((1, 1, 1, 2, 3)) if face in ("chat", "completion") else 1
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
        body, prompt_tokens = self._body(face, cues, choices, limit or 100)
        if kind.endswith("stream"):
            body["stream"] = True
            if path in (CHAT, COMPLETIONS) and chance.random() < 0.5:
                body["stream_options"] = {"include_usage": True}
        return Plan(
            number,
            kind,
            path,
            body,
            tuple(texts),
            finish="stop" if limit is None else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(map(len, texts)),
            fail=fail,
            executions=tuple(f"q{number}p{prompt}" for prompt in range(prompts)),
            seconds=len(texts[0]) / per_step * STEP_SECONDS,
        )

    def _body(
        self, face: str, cues: list[str], choices: int, limit: int
    ) -> tuple[dict[str, Any], int]:
        """The body of a text request of at most `limit` tokens, and the tokens of its prompts."""
        body: dict[str, Any] = {"model": TEXT_MODEL}
        prompt_tokens = sum(len(cue.split()) for cue in cues)
        system = "Repeat the cue." if self._chance.random() < 0.3 else ""
        if face != "completion":
            prompt_tokens += len(system.split())
        message = {"role": "user", "content": cues[0]}
        if face == "response":
            body |= {"input": cues[0], "max_output_tokens": limit, "store": False}
            return body | ({"instructions": system} if system else {}), prompt_tokens
        body["max_tokens"] = limit
        if face == "message":
            body["messages"] = [message]
            return body | ({"system": system} if system else {}), prompt_tokens
        body["n"] = choices
        if face == "completion":
            body["prompt"] = cues if len(cues) > 1 else cues[0]
        else:
            instruction = [{"role": "system", "content": system}] if system else []
            body["messages"] = [*instruction, message]
        return body, prompt_tokens

    def _stored(self, number: int) -> Plan:
        """A stored response, its continuation, and reading that."""
        chance = self._chance
        first, second = (
            self._text(each, chance.choice(("response", "response stream")))
            for each in (number, self._number())
        )
        # The continuation's prompt has the cue and the answer of the first, but no instructions.
        cue = (first.body or {})["input"]
        earlier = len(cue.split()) + first.completion_tokens
        read = Plan(
            self._number(),
            "response read",
            RESPONSES,
            choices=second.choices,
            finish=second.finish,
            prompt_tokens=earlier + second.prompt_tokens,
            completion_tokens=second.completion_tokens,
        )
        kept = {"store": True}
        second = replace(
            second,
            kind="response continued",
            body=(second.body or {}) | kept,
            prompt_tokens=read.prompt_tokens,
            then=read,
        )
        return replace(first, kind="response stored", body=(first.body or {}) | kept, then=second)

    def _tokens(self, number: int) -> Plan:
        chance = self._chance
        if chance.random() < 0.5:
            words = tuple(f"q{number}p0.{position}" for position in range(chance.randint(1, 200)))
            text = {"model": TEXT_MODEL, "prompt": " ".join(words)}
            return Plan(number, "tokens", TOKENIZE, text, inputs=words)
        ids = [chance.randrange(1000) for _ in range(chance.randint(1, 200))]
        tokens = {"model": TEXT_MODEL, "tokens": ids}
        return Plan(number, "tokens", DETOKENIZE, tokens, inputs=tuple(f"w{one}" for one in ids))

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
