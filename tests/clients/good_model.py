"""A text engine that answers as a good model would, for tests of clients.

It has no model. What it answers, first match first:

    a tool that the request forces, or that the last user message names    a call of it
    a constraint, or a JSON Schema in a message                            an instance of the schema
    results of tool calls                                                  their text
    images                                                                 their number and types
    anything else                                                          ANSWER

Values of instances and arguments come from the messages: "city = Rome" fills a property `city`; the
last such words count. Other properties get fixed values, and none "with only city = Rome".
REASONING comes first if the last message has "think first".
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from inference.config import ModelConfig
from inference.engines.base import Emit, EngineHealth, Report, Terms, TextEngine
from inference.limits import answer_budget
from isthmus.v1.chat_pb2 import ROLE_TOOL, ROLE_USER, ChatInput, ChatMessage, ToolChoice
from isthmus.v1.generate_pb2 import (
    ChoiceDelta,
    ChoiceFinish,
    FinishReason,
    GenerateRequest,
    GenerateResponse,
)
from isthmus.v1.models_pb2 import Model, ModelKind, TextCapabilities
from isthmus.v1.usage_pb2 import Usage

ANSWER = "The capital of France is Paris."
REASONING = "The user asks about France."
# Characters of a call's arguments in one delta.
PIECE = 6
CONTEXT_LENGTH = 8192

Call = tuple[str, str]
"""The name of a function and its arguments as JSON."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    request: GenerateRequest
    prompt_tokens: int
    max_output_tokens: int


class GoodModel(TextEngine):
    """The engine; it is deterministic, and each word or piece of arguments is a token."""

    def __init__(self, config: ModelConfig) -> None:
        self._generated = 0
        self.system_fingerprint = "fp_good"
        self.model = Model(
            kind=ModelKind.MODEL_KIND_TEXT,
            created=1_700_000_000,
            context_length=CONTEXT_LENGTH,
            text=TextCapabilities(
                chat=True, tools=True, vocabulary_size=50_000, max_choices=config.max_choices
            ),
        )

    async def start(self, report: Report) -> None:
        report("ready")

    def health(self) -> EngineHealth:
        return EngineHealth(True, 0, 0.0, self._generated)

    async def close(self) -> None:
        """Does nothing: there is nothing to free."""

    async def prepare(self, request: GenerateRequest, terms: Terms) -> _Prepared:
        """Counts words as tokens."""
        words = sum(len(text.split()) for text in (*_texts(request.chat.messages), request.text))
        budget = answer_budget(request, words, terms.context_length)
        return _Prepared(request, words, budget)

    async def generate(self, prepared: _Prepared, emit: Emit) -> None:
        """Emits each token of each choice by itself."""
        request = prepared.request
        whole = list(_deltas(request))
        deltas = whole[: prepared.max_output_tokens]
        choices = range(request.output.n or 1)
        for index in choices:
            for delta in deltas:
                delta.index = index
                emit(GenerateResponse(deltas=[delta]))
                await asyncio.sleep(0)
        self._generated += len(deltas) * len(choices)
        reason = FinishReason.FINISH_REASON_STOP
        if len(deltas) < len(whole):
            reason = FinishReason.FINISH_REASON_LENGTH
        elif deltas[-1].tool_calls:
            reason = FinishReason.FINISH_REASON_TOOL_CALLS
        finishes = [ChoiceFinish(index=index, reason=reason) for index in choices]
        usage = Usage(
            prompt_tokens=prepared.prompt_tokens, completion_tokens=len(deltas) * len(choices)
        )
        emit(GenerateResponse(finishes=finishes, usage=usage))


def _deltas(request: GenerateRequest) -> Iterator[ChoiceDelta]:
    """The words of the text, or the pieces of the calls.

    The end of a call and the opening of the next share a delta, as in one engine step.
    """
    calls = _calls(request.chat)
    if request.chat.messages and "think first" in _texts(request.chat.messages)[-1]:
        yield from (ChoiceDelta(reasoning=word) for word in re.findall(r"\s*\S+", REASONING))
    if not calls:
        yield from (ChoiceDelta(text=word) for word in re.findall(r"\s*\S+", _text(request)))
    delta = ChoiceDelta()
    for index, (name, arguments) in enumerate(calls):
        delta.tool_calls.add(index=index, id=f"call_{uuid4().hex}", name=name)
        for at in range(0, len(arguments), PIECE):
            yield delta
            delta = ChoiceDelta()
            delta.tool_calls.add(index=index, arguments=arguments[at : at + PIECE])
    if calls:
        yield delta


def _texts(messages: Sequence[ChatMessage]) -> list[str]:
    return ["".join(part.text for part in message.parts) for message in messages]


def _calls(chat: ChatInput) -> list[Call]:
    """The calls of this turn: those forced, or those that the last user message names."""
    choice = chat.tool_choice
    if not chat.tools or choice.mode == ToolChoice.MODE_NONE:
        return []
    allowed = [*choice.allowed_functions] or [tool.name for tool in chat.tools]
    turn = max((i for i, item in enumerate(chat.messages) if item.role == ROLE_USER), default=0)
    past = {call.name for message in chat.messages[turn:] for call in message.tool_calls}
    left = [name for name in allowed if name not in past]
    question = _texts(chat.messages)[turn]
    named = [name for name in left if re.search(rf"\b{re.escape(name)}\b", question)]
    if choice.mode == ToolChoice.MODE_FUNCTION:
        names = [choice.function_name]
    elif named:
        alone = chat.HasField("parallel_tool_calls") and not chat.parallel_tool_calls
        names = named[:1] if alone else named
    elif choice.mode == ToolChoice.MODE_REQUIRED:
        names = (left or allowed)[:1]
    else:
        return []
    schemas = {tool.name: json.loads(tool.parameters_json or "{}") for tool in chat.tools}
    texts = _texts(chat.messages)
    return [(name, json.dumps(instance(schemas[name], texts))) for name in names]


def _text(request: GenerateRequest) -> str:
    messages = request.chat.messages
    texts = _texts(messages)
    rule = request.constraint.WhichOneof("rule")
    if rule == "choices":
        return request.constraint.choices.values[0]
    schema = json.loads(request.constraint.json_schema) if rule == "json_schema" else None
    # LlamaIndex doubles the braces of a schema in a prompt.
    undoubled = [text.replace("{{", "{").replace("}}", "}") for text in texts]
    schema = schema or next(filter(None, map(_schema_in, reversed([*undoubled, *texts]))), None)
    if schema is not None:
        text = json.dumps(instance(schema, texts))
        fenced = rule is None and any("```json" in each for each in texts)
        return f"Here it is:\n```json\n{text}\n```" if fenced else text
    if rule == "json_object":
        return json.dumps({"answer": ANSWER})
    if messages and messages[-1].role == ROLE_TOOL:
        results = [text for text, each in zip(texts, messages, strict=True) if each.tool_call_id]
        return f"The tools returned: {', '.join(results)}"
    images = [part.image for each in messages for part in each.parts if part.HasField("image")]
    if images:
        return f"I see {len(images)} of {', '.join(image.mime_type for image in images)}."
    return ANSWER


def _schema_in(text: str) -> dict[str, Any] | None:
    """The last JSON object of the text that is a schema of an object; those before are examples."""
    decoder, schema, at = json.JSONDecoder(), None, text.find("{")
    while at >= 0:
        end = at + 1
        with suppress(json.JSONDecodeError):
            value, end = decoder.raw_decode(text, at)
            if isinstance(value.get("properties"), dict):
                schema = value
        at = text.find("{", end)
    return schema


def instance(schema: dict[str, Any], texts: Sequence[str]) -> Any:
    """An instance of a schema of the shapes that clients produce."""
    said = dict(re.findall(r"(\w+) = ([\w.]*\w)", "\n".join(texts)))
    only = any(" with only " in text for text in texts)

    def fill(part: dict[str, Any], name: str = "") -> Any:
        if "$ref" in part:
            target: Any = schema
            for step in part["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            return fill(target, name)
        if "const" in part:
            return part["const"]
        if "enum" in part:
            return said[name] if said.get(name) in part["enum"] else part["enum"][0]
        for union in ("anyOf", "oneOf", "allOf"):
            if union in part:
                return fill(part[union][0], name)
        kind = part.get("type", "object")
        if isinstance(kind, list):
            kind = kind[0]
        if kind == "array":
            count = max(part.get("minItems", 2), 1)
            return [fill(part.get("items", {"type": "string"})) for _ in range(count)]
        if kind == "integer":
            return int(said.get(name, part.get("minimum", 3)))
        if kind == "number":
            return float(said.get(name, part.get("minimum", 1.5)))
        if kind == "boolean":
            return True
        if kind == "null":
            return None
        if kind == "string":
            return said.get(name, "text")
        properties = part.get("properties", {})
        wanted = said if only else properties
        return {key: fill(value, key) for key, value in properties.items() if key in wanted}

    return fill(schema)
