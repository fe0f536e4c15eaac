"""Requests to a text engine, and the collected output of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inference.engines.base import Prepared, Terms, TextEngine
from isthmus.v1 import chat_pb2
from isthmus.v1.generate_pb2 import ChoiceFinish, GenerateRequest, GenerateResponse, TokenLogprob
from isthmus.v1.usage_pb2 import Usage


@dataclass
class Result:
    """The collected output of one request, by choice index or (choice, tool call) index."""

    texts: dict[int, str] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)
    arguments: dict[tuple[int, int], str] = field(default_factory=dict)
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    ids: dict[tuple[int, int], str] = field(default_factory=dict)
    reasoning: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, ChoiceFinish] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    prompt: list[TokenLogprob] = field(default_factory=list)
    usage: Usage | None = None
    plain: int = 0

    def take(self, event: str | GenerateResponse) -> None:
        assert self.usage is None, "usage is the last message"
        if isinstance(event, str):
            assert event, "empty output is not yielded"
            self.plain += 1
            self._text(0, event)
            return
        assert event.ByteSize(), "empty output is not yielded"
        self.prompt.extend(event.prompt_logprobs.tokens)
        for delta in event.deltas:
            assert delta.HasField("index")
            assert delta.index not in self.finishes
            self._text(delta.index, delta.text)
            self.reasoning[delta.index] = self.reasoning.get(delta.index, "") + delta.reasoning
            self.logprobs.setdefault(delta.index, []).extend(delta.logprobs.tokens)
            self.token_ids.setdefault(delta.index, []).extend(delta.token_ids)
            for call in delta.tool_calls:
                key = (delta.index, call.index)
                assert key not in self.names or not (call.id or call.name)
                if key not in self.names:
                    self.names[key], self.ids[key] = call.name, call.id
                self.arguments[key] = self.arguments.get(key, "") + call.arguments
        for finish in event.finishes:
            assert finish.HasField("index")
            assert finish.index not in self.finishes, "each choice has one finish"
            self.finishes[finish.index] = finish
        if event.HasField("usage"):
            self.usage = event.usage

    def _text(self, index: int, text: str) -> None:
        self.texts[index] = self.texts.get(index, "") + text
        self.pieces.append(text)


async def prepare(
    engine: TextEngine, request: GenerateRequest, max_tokens: int = 1500, priority: int = 0
) -> Prepared:
    """Prepares a request; `max_tokens` applies if the request sets none."""
    limited = GenerateRequest()
    limited.CopyFrom(request)
    if not limited.stopping.HasField("max_tokens"):
        limited.stopping.max_tokens = max_tokens
    return await engine.prepare(limited, Terms(engine.model.context_length, priority))


async def run(engine: TextEngine, request: GenerateRequest, max_tokens: int = 64) -> Result:
    prepared = await prepare(engine, request, max_tokens)
    result = Result()
    await engine.generate(prepared, result.take)
    assert result.usage is not None
    assert result.usage.prompt_tokens == prepared.prompt_tokens
    return result


def chat(text: str, **parts: Any) -> GenerateRequest:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[{"text": text}])
    parts.setdefault("sampling", {"temperature": 0})
    tools = parts.pop("tools", None)
    choice = parts.pop("tool_choice", None)
    return GenerateRequest(
        chat=chat_pb2.ChatInput(messages=[message], tools=tools, tool_choice=choice), **parts
    )


def text(prompt: str, **parts: Any) -> GenerateRequest:
    parts.setdefault("sampling", {"temperature": 0})
    return GenerateRequest(text=prompt, **parts)


def joined(tokens: list[TokenLogprob]) -> bytes:
    return b"".join(item.token.data for item in tokens)
