"""Requests in the form of Codex, and a client that checks the responses of any server.

The bodies have the form of those of Codex 0.171: no `instructions`, two developer messages, a
namespace of tools, a `web_search` without a name, `store: false` and reasoning that is to be
encrypted. A case depends on the form of an answer only: tool choice and schemas force what must be
in it. `max_output_tokens` and a temperature of 0 keep the runs short and equal.
tests/contract/test_codex_cases.py has the cases that need a model with a known answer.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

PATH: Final = "/v1/responses"
TEXT: Final = {"type": "string"}
QUESTION: Final = "What is the capital of France?"


def message(role: str, text: str, number: int) -> dict[str, Any]:
    """A message item with one part of text."""
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "id": f"msg_{number}", "role": role, "content": content}


def function(name: str, **properties: Any) -> dict[str, Any]:
    """A function tool that requires all its properties."""
    return {
        "type": "function",
        "name": name,
        "description": "A tool.",
        "strict": False,
        "parameters": closed(**properties),
    }


def closed(**properties: Any) -> dict[str, Any]:
    """The JSON Schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


AGENTS: Final = {
    "type": "namespace",
    "name": "multi_agent_v1",
    "description": "Agents.",
    "tools": [function("close_agent", target=TEXT), function("spawn_agent", task=TEXT)],
}
TOOLS: Final = [
    function("exec_command", cmd=TEXT),
    function("write_stdin", session_id={"type": "number"}),
    function("view_image", path=TEXT),
    AGENTS,
    {"type": "web_search", "external_web_access": False},
]
GRAMMAR: Final = {
    "type": "grammar",
    "syntax": "lark",
    "definition": 'start: "*** Begin Patch" /(.|\\n)*/',
}
FREE: Final = {"type": "custom", "name": "apply_patch", "description": "Edits."}
PATCH: Final = {**FREE, "format": GRAMMAR}
SEARCH: Final = {
    "type": "tool_search",
    "execution": "client",
    "description": "Finds tools.",
    "parameters": {"type": "object", "properties": {}},
}
BEFORE: Final = [
    message("developer", "You are a coding agent.", 1),
    message("developer", "<permissions>never ask</permissions>", 2),
    message("user", "<environment_context><cwd>/w</cwd></environment_context>", 3),
]
CODEX: Final[dict[str, Any]] = {
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a22ceb-ed75-7092-b1ff-f8520f7792b0",
    "client_metadata": {"x-codex-installation-id": "b4f1"},
}
HEADERS: Final = {
    "accept": "text/event-stream",
    "originator": "codex_exec",
    "session-id": "01a22ceb",
    "thread-id": "01a22ceb",
    "x-codex-turn-metadata": '{"turn_id":"1"}',
    "user-agent": "codex_exec/0.171.0",
}
# The form of these two calls is known: the values of their arguments are among few. Codex's own
# functions are not strict, and the arguments of a forced call are then what the model writes.
ONE_CALL: Final = {
    **function("exec_command", cmd={"type": "string", "enum": ["pwd", "ls"]}),
    "strict": True,
}
OTHER_CALL: Final = {
    **function("write_stdin", text={"type": "string", "enum": ["yes", "no"]}),
    "strict": True,
}
FORCED: Final = {"type": "function", "name": "exec_command"}
CITY: Final = {
    "type": "json_schema",
    "name": "codex_output_schema",
    "strict": True,
    "schema": closed(city={"type": "string", "enum": ["Rome", "Paris"]}),
}
# Words that a tool returns; a prompt with them has at least so many more tokens.
WORDS: Final = 40


def called(kind: str, **members: Any) -> dict[str, Any]:
    """An item of a call that a model made before."""
    return {"type": kind, "id": "fc_1", "call_id": "call_1", "status": "completed", **members}


def returned(call: dict[str, Any], output: str) -> dict[str, Any]:
    """The output of a call."""
    return {"type": f"{call['type']}_output", "id": "o_1", "call_id": call["call_id"],
            "output": output}  # fmt: skip


def said(text: str) -> dict[str, Any]:
    """A message of the assistant."""
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "content": content}


class CaseError(Exception):
    """A case failed; the text says what the response had instead."""


def need(condition: object, found: str) -> None:
    """Raises CaseError with what was found, unless the condition holds."""
    if not condition:
        raise CaseError(found)


@dataclass(frozen=True)
class Api:
    """A server's Responses API.

    Attributes:
        http: A session with the server's base URL and its key.
        model: The model of all requests.
    """

    http: aiohttp.ClientSession
    model: str

    def asked(self, text: str, /, *more: dict[str, Any], **changed: Any) -> dict[str, Any]:
        """The body of a turn of Codex, with items after the user's message and other members."""
        items = [*BEFORE, message("user", text, 4), *more]
        short = {"max_output_tokens": 64, "temperature": 0}
        return {"model": self.model, **CODEX, "input": items, **short, **changed}

    async def post(self, body: dict[str, Any]) -> tuple[int, str, str]:
        """Returns status, media type and text of the response."""
        async with self.http.post(PATH, json=body, headers=HEADERS) as response:
            return response.status, response.content_type, await response.text()

    async def plain(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the response object; raises CaseError if the status is not 200."""
        status, _, text = await self.post(body)
        need(status == 200, f"{status}: {error_of(text).get('message', text)}")
        document: dict[str, Any] = json.loads(text)
        return document

    async def stream(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the events; raises CaseError if there is no stream or an event has two names."""
        status, media_type, text = await self.post({**body, "stream": True})
        need(status == 200, f"{status}: {error_of(text).get('message', text)}")
        need(media_type == "text/event-stream", f"media type {media_type}")
        found = []
        for block in text.replace("\r\n", "\n").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
            if fields.get("data", "[DONE]") == "[DONE]":
                continue
            found.append(json.loads(fields["data"]))
            name, kind = fields.get("event"), found[-1].get("type")
            need(name == kind, f"event {name} has the type {kind}")
        need(found, "no event")
        return found

    async def refused(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Returns the status and the error object of a response that must be an error."""
        status, _, text = await self.post(body)
        need(status >= 400, f"{status} instead of an error")
        return status, error_of(text)

    async def prompt_grows(self, item: dict[str, Any], **changed: Any) -> None:
        """Checks that the output of a tool reaches the prompt, by the usage."""
        counts = []
        for text in ("x", " ".join(["word"] * WORDS)):
            kind = f"{item['type']}_output"
            output = {"type": kind, "id": "o_1", "call_id": item["call_id"], "output": text}
            done = await self.plain(self.asked("Hello", item, output, **changed))
            counts.append(done["usage"]["input_tokens"])
        grown = counts[1] - counts[0]
        need(grown >= WORDS - 1, f"{WORDS} words add {grown} tokens to the prompt")


def error_of(text: str) -> dict[str, Any]:
    """The error object of a response's text; empty if there is none."""
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def names(found: list[dict[str, Any]]) -> list[str]:
    """The types of events without `response.`."""
    return [event["type"].removeprefix("response.") for event in found]


def final(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The response object of the last event."""
    need("response" in found[-1], f"the last event is {found[-1]['type']}")
    response: dict[str, Any] = found[-1]["response"]
    return response


def only(response: dict[str, Any], kind: str) -> dict[str, Any]:
    """The single item of the output, which must have this type."""
    kinds = [item["type"] for item in response["output"]]
    need(kinds == [kind], f"the output has {kinds}, not one {kind}")
    item: dict[str, Any] = response["output"][0]
    return item


def same(found: Any, wanted: Any, what: str) -> None:
    """Raises CaseError if two values differ."""
    need(found == wanted, f"{what} is {json.dumps(found)}, not {json.dumps(wanted)}")


def text_of(item: dict[str, Any]) -> str:
    """The text, arguments or input of an item of the output."""
    for member in ("arguments", "input"):
        if member in item:
            return str(item[member])
    return "".join(part["text"] for part in item["content"])


@dataclass(frozen=True)
class Case:
    """A case: `run` returns if the server holds it, and raises CaseError if not."""

    name: str
    run: Callable[[Api], Awaitable[None]]
