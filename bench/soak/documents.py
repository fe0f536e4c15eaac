"""Compares documents (answers in one piece) and direct calls with their plans."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from bench.soak.faces import check_message, check_response, check_tokens
from bench.soak.pictures import check_picture
from bench.soak.plan import (
    DETOKENIZE,
    DIMENSIONS,
    EMBEDDING_MODEL,
    EMBEDDINGS,
    IMAGE_MODEL,
    IMAGES,
    MESSAGES,
    MODELS,
    RESPONSES,
    TEXT_MODEL,
    TOKENIZE,
    Plan,
)
from bench.soak.words import Problem, check_text

_FINISH_NAMES: Final = {1: "stop", 2: "length"}


def check_document(plan: Plan, body: bytes) -> list[Problem]:
    """Compares the complete body of a 200 with its plan."""
    try:
        document = json.loads(body)
        # The path of a model, or of a response that is read, goes on with its id.
        face = "/".join(plan.path.split("/")[:3])
        return list(_CHECKS.get(face, _CHECKS.get(plan.path, _check_choices))(plan, document))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return [("corrupted", f"unreadable: {error!r}: {body[:60]!r}"[:150])]


def _check_choices(plan: Plan, document: dict[str, Any]) -> Iterable[Problem]:
    choices = document["choices"]
    if [choice["index"] for choice in choices] != list(range(len(plan.choices))):
        yield "corrupted", f"choices {[choice['index'] for choice in choices]}"
        return
    for words, choice in zip(plan.choices, choices, strict=True):
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        yield from check_text(words, text, complete=True)
        if choice["finish_reason"] != plan.finish:
            yield "corrupted", f"finish_reason {choice['finish_reason']}, not {plan.finish}"
    yield from check_usage(plan, document["usage"])


def _check_models(plan: Plan, document: dict[str, Any]) -> Iterable[Problem]:
    several = plan.path == MODELS
    ids = [model["id"] for model in (document["data"] if several else [document])]
    wanted = (TEXT_MODEL, EMBEDDING_MODEL, IMAGE_MODEL) if several else (TEXT_MODEL,)
    if sorted(ids) != sorted(wanted):
        yield "corrupted", f"models {ids}"


def _vector(text: str, dimensions: int) -> bytes:
    """Returns the scripted engine's vector for a text: its hash, scaled to length 1."""
    raw = np.frombuffer(hashlib.shake_256(repr(text).encode()).digest(4 * dimensions), dtype="<u4")
    vector = raw.astype(np.float32) / np.float32(2**31) - np.float32(1)
    unit = vector / np.linalg.norm(vector, axis=0)
    return bytes(unit.tobytes())


def _check_vectors(plan: Plan, document: dict[str, Any]) -> Iterable[Problem]:
    rows = document["data"]
    if [row["index"] for row in rows] != list(range(len(plan.inputs))):
        yield "lost", f"{len(rows)} vectors for {len(plan.inputs)} texts"
        return
    for text, row in zip(plan.inputs, rows, strict=True):
        vector = row["embedding"]
        found = (
            base64.b64decode(vector, validate=True)
            if isinstance(vector, str)
            else (np.asarray(vector, dtype="<f4").tobytes())
        )
        if found != _vector(text, DIMENSIONS):
            yield "corrupted", f"the vector of {text!r}"
            return
    yield from check_usage(plan, document["usage"])


def _check_images(plan: Plan, document: dict[str, Any]) -> Iterable[Problem]:
    images = document["data"]
    if len(images) != len(plan.seeds):
        yield "lost", f"{len(images)} images, not {len(plan.seeds)}"
        return
    for seed, image in zip(plan.seeds, images, strict=True):
        yield from check_picture(seed, image["seed"], image["b64_json"], 1.0)
    if document["usage"]["input_tokens"] != plan.prompt_tokens:
        yield "corrupted", f"usage {document['usage']}"


def check_messages(plan: Plan, messages: Sequence[Any], *, success: bool) -> list[Problem]:
    """Compares the messages of a direct call with its plan."""
    text, finishes, usages = "", 0, 0
    problems: list[Problem] = []
    for message in messages:
        for delta in message.deltas:
            if finishes:
                problems.append(("duplicated", "text after the end"))
            text += delta.text
        for finish in message.finishes:
            finishes += 1
            if _FINISH_NAMES.get(finish.reason) != plan.finish:
                problems.append(("corrupted", f"finish reason {finish.reason}"))
        if message.HasField("usage"):
            usages += 1
            usage = (message.usage.prompt_tokens, message.usage.completion_tokens)
            if usage != (plan.prompt_tokens, plan.completion_tokens):
                problems.append(("corrupted", f"usage {usage}"))
    problems += check_text(plan.choices[0], text, complete=success or finishes > 0)
    if finishes > 1 or usages > 1:
        problems.append(("duplicated", f"{finishes} ends and {usages} usages"))
    if success and not (finishes and usages):
        problems.append(("lost", f"OK with {finishes} ends and {usages} usages"))
    return problems


def check_usage(plan: Plan, usage: dict[str, Any]) -> Iterable[Problem]:
    """Compares the usage of a text or embedding request with its plan."""
    found = (usage["prompt_tokens"], usage.get("completion_tokens", 0), usage["total_tokens"])
    prompt, completion = plan.prompt_tokens, plan.completion_tokens
    if found != (prompt, completion, prompt + completion):
        yield "corrupted", f"usage {found}, not {(prompt, completion, prompt + completion)}"


_CHECKS: Final = {
    MODELS: _check_models,
    EMBEDDINGS: _check_vectors,
    IMAGES: _check_images,
    RESPONSES: check_response,
    MESSAGES: check_message,
    TOKENIZE: check_tokens,
    DETOKENIZE: check_tokens,
}
