"""What each parameter of a Messages request must do; every parameter has at least one row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.unit.openai.parameters import (
    OPEN,
    Body,
    Json,
    Parameter,
    advice,
    checked,
    refused,
    sent,
)

CACHE = {"cache_control": {"type": "ephemeral"}}
USER = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": "hi"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "r"}
TOOL = {"name": "f", "input_schema": OPEN}
FORMAT = {"type": "json_schema", "schema": OPEN}
OPEN_TEXT = '{"type": "object", "properties": {"a": {"type": "string"}}}'
NOT_OFFERED = {
    "document": ("cache_control", "source", "title", "context", "citations"),
    "search_result": ("cache_control", "source", "title", "content", "citations"),
}
# Members of Anthropic's own tools, and how a tool is cached and streamed.
TOOL_ADVICE = (
    "cache_control", "allowed_callers", "eager_input_streaming", "input_examples",
    "allowed_domains", "blocked_domains", "caching", "citations", "configs", "default_config",
    "display_height_px", "display_number", "display_width_px", "enable_zoom", "max_characters",
    "max_content_tokens", "max_tokens", "max_uses", "mcp_server_name", "model",
    "response_inclusion", "tools", "url_sources", "use_cache", "user_location",
)  # fmt: skip


def said(role: str, *blocks: Json) -> Body:
    """A valid request whose turn of this role has these blocks."""
    turn = {"role": role, "content": list(blocks)}
    if role == "assistant":
        uses = any(block["type"] == "tool_use" for block in blocks)
        return Body(messages=[USER, turn, *([answered()] if uses else []), ASKS])
    return Body(messages=[turn, ASKS])


# It has another content than USER, so that a change of a turn cannot make two equal requests.
ASKS = {"role": "user", "content": "and?"}


def answered(**result: Any) -> Json:
    return {"role": "user", "content": [RESULT | result]}


def result(**members: Any) -> Body:
    """A valid request with the result of a tool."""
    used = {"role": "assistant", "content": [USE]}
    return Body(messages=[used, answered(**members), ASKS])


def _texts() -> Iterator[Parameter]:
    for role, i in (("user", 0), ("assistant", 1), ("system", 0)):
        at = f"messages[{role}].content"
        text = said(role, {"type": "text", "text": "x"})
        yield sent(at, text, {f"chat.messages.{i}.parts.0.text": "x"})
        yield sent(f"{at}[text].text", text, {f"chat.messages.{i}.parts.0.text": "x"})
        yield advice(f"{at}[text].cache_control", said(role, TEXT | CACHE))
        yield advice(f"{at}[text].citations", said(role, TEXT | {"citations": []}))
    parts = {"chat.messages.0.role": "ROLE_SYSTEM", "chat.messages.0.parts": [{"text": "s"}]}
    yield sent("system", "s", parts)
    yield sent("system[text].text", Body(system=[{"type": "text", "text": "s"}]), parts)
    for name, value in ({"citations": None} | CACHE).items():
        yield advice(f"system[text].{name}", Body(system=[TEXT | {name: value}]))


def _image(at: str, wrap: Any, index: int, part: int) -> Iterator[Parameter]:
    """An image in a turn, or in the result of a tool."""
    field = f"chat.messages.{index}.parts.{part}.image"
    yield sent(f"{at}.source", wrap(IMAGE), {f"{field}.data": "AAAA"})
    yield sent(f"{at}.source[base64].data", wrap(IMAGE), {f"{field}.data": "AAAA"})
    yield sent(f"{at}.source[base64].media_type", wrap(IMAGE), {f"{field}.mime_type": "image/png"})
    place = wrap(IMAGE)["messages"]
    param = f"messages[{1 if len(place) == 3 else 0}].content[0]"
    param += ".content[0]" if len(place) == 3 else ""
    for kind, name in (("url", "url"), ("file", "file_id")):
        source = IMAGE | {"source": {"type": kind, name: "x"}}
        yield refused(f"{at}.source[{kind}].{name}", wrap(source), param=f"{param}.source.type")
    yield advice(f"{at}.cache_control", wrap(IMAGE | CACHE))
    yield advice(f"{at}.transformations", wrap(IMAGE | {"transformations": {}}))


def _user() -> Iterator[Parameter]:
    at = "messages[user].content"
    yield from _image(f"{at}[image]", lambda block: said("user", block), 0, 0)
    for kind, names in NOT_OFFERED.items():
        for name in names:
            block = {"type": kind, name: "x"}
            yield refused(f"{at}[{kind}].{name}", said("user", block),
                          param="messages[0].content[0].type")  # fmt: skip
    at = f"{at}[tool_result]"
    yield sent(f"{at}.tool_use_id", result(), {"chat.messages.1.tool_call_id": "t"})
    yield sent(f"{at}.content", result(content="x"), {"chat.messages.1.parts.0.text": "x"})
    yield sent(
        f"{at}.is_error", result(is_error=True), {"chat.messages.1.parts.0.text": "Error: r"}
    )
    yield advice(f"{at}.cache_control", result(**CACHE))
    yield advice(f"{at}.toolset_name", result(toolset_name="x"))
    at = f"{at}.content"
    yield sent(f"{at}[text].text", result(content=[TEXT]), {"chat.messages.1.parts.0.text": "hi"})
    yield advice(f"{at}[text].cache_control", result(content=[TEXT | CACHE]))
    yield advice(f"{at}[text].citations", result(content=[TEXT | {"citations": []}]))
    yield from _image(f"{at}[image]", lambda block: result(content=[block]), 2, 0)
    for kind, names in NOT_OFFERED.items():
        for name in names:
            yield refused(f"{at}[{kind}].{name}", result(content=[{"type": kind, name: "x"}]),
                          param="messages[1].content[0].content[0].type")  # fmt: skip
    found = {"type": "tool_reference", "tool_name": "f"}
    hidden = [TOOL | {"defer_loading": True}]
    yield sent(f"{at}[tool_reference].tool_name", Body(result(content=[found]) | {"tools": hidden}),
               {"chat.tools.0.name": "f"})  # fmt: skip
    yield advice(f"{at}[tool_reference].cache_control", result(content=[found | CACHE]))


def _assistant() -> Iterator[Parameter]:
    at = "messages[assistant].content"
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    yield sent(
        f"{at}[thinking].thinking",
        said("assistant", thinking),
        {"chat.messages.1.reasoning": "Hm."},
    )
    yield advice(f"{at}[thinking].signature", said("assistant", thinking))
    yield advice(f"{at}[thinking].cache_control", said("assistant", thinking | CACHE))
    redacted = {"type": "redacted_thinking", "data": "d"}
    yield advice(f"{at}[redacted_thinking].data", said("assistant", TEXT, redacted))
    yield advice(f"{at}[redacted_thinking].cache_control", said("assistant", redacted | CACHE))
    call = "chat.messages.1.tool_calls.0"
    yield sent(f"{at}[tool_use].id", said("assistant", USE), {f"{call}.id": "t"})
    yield sent(f"{at}[tool_use].name", said("assistant", USE), {f"{call}.name": "f"})
    yield sent(f"{at}[tool_use].input", said("assistant", USE), {f"{call}.arguments": "{}"})
    for name, value in ({"caller": {"type": "direct"}, "toolset_name": "x"} | CACHE).items():
        yield advice(f"{at}[tool_use].{name}", said("assistant", USE | {name: value}))


def _changes() -> Iterator[Parameter]:
    at = "messages[system]"
    reference = {"type": "tool_reference", "name": "f"}
    addition: Json = {"type": "tool_addition", "tool": reference}
    removal: Json = {"type": "tool_removal", "tool": reference}
    added = Body(said("system", addition) | {"tools": [TOOL | {"defer_loading": True}]})
    removed = Body(said("system", removal) | {"tools": [TOOL, TOOL | {"name": "g"}]})
    for name in ("tool", "tool[tool_reference].name"):
        yield sent(f"{at}.content[tool_addition].{name}", added, {"chat.tools.0.name": "f"})
        yield sent(f"{at}.content[tool_removal].{name}", removed, {"chat.tools.0.name": "g"})
    inline = addition | {"tool": {"type": "tool_definition", "definition": TOOL}}
    yield refused(f"{at}.content[tool_addition].tool[tool_definition].definition",
                  said("system", inline), param="messages[0].content[0].tool.type")  # fmt: skip
    inlined = removal | {"tool": {"type": "tool_definition", "definition": TOOL}}
    yield refused(f"{at}.content[tool_removal].tool[tool_definition].definition",
                  said("system", inlined), param="messages[0].content[0].tool.type")  # fmt: skip
    yield advice(f"{at}.content[tool_addition].cache_control", said("system", addition | CACHE))
    yield advice(f"{at}.content[tool_removal].cache_control", said("system", removal | CACHE))
    instructed = {"role": "system", "content": "x", "output_config": {"effort": "low"}}
    yield advice(f"{at}.output_config", Body(messages=[USER, instructed, ASKS]))
    cleared = {"role": "system", "content": "once", "clear_at": "next_user_message"}
    yield sent(f"{at}.clear_at", Body(messages=[USER, cleared, ASKS]),
               {"chat.messages.1.role": "ROLE_USER"})  # fmt: skip


def _tools() -> Iterator[Parameter]:
    tools = {"chat.tools": [{"name": "f", "parameters_json": OPEN_TEXT}]}
    yield sent("tools", [TOOL], tools)
    yield advice("tools[].type", Body(tools=[TOOL | {"type": "custom"}]))
    yield refused("tools[].type", Body(tools=[TOOL | {"type": "bash_20250124"}]),
                  param="tools[0].type")  # fmt: skip
    yield sent("tools[].name", Body(tools=[TOOL]), {"chat.tools.0.name": "f"})
    yield sent("tools[].description", Body(tools=[TOOL | {"description": "d"}]),
               {"chat.tools.0.description": "d"})  # fmt: skip
    yield sent("tools[].input_schema", Body(tools=[TOOL]),
               {"chat.tools.0.parameters_json": OPEN_TEXT})  # fmt: skip
    yield sent("tools[].strict", Body(tools=[TOOL | {"strict": True}]),
               {"chat.tools.0.strict": True})  # fmt: skip
    hidden = Body(tools=[TOOL | {"defer_loading": True}, TOOL | {"name": "g"}])
    yield sent("tools[].defer_loading", hidden, {"chat.tools.0.name": "g"})
    for name in TOOL_ADVICE:
        yield advice(f"tools[].{name}", Body(tools=[TOOL | {name: {}}]))
    mode, one = "chat.tool_choice.mode", "chat.parallel_tool_calls"
    yield sent("tool_choice", Body(tools=[TOOL], tool_choice={"type": "none"}),
               {mode: "MODE_NONE"})  # fmt: skip
    for kind, more in (("auto", {}), ("any", {}), ("tool", {"name": "f"})):
        choice = {"type": kind, "disable_parallel_tool_use": True} | more
        yield sent(f"tool_choice[{kind}].disable_parallel_tool_use",
                   Body(tools=[TOOL], tool_choice=choice), {one: False})  # fmt: skip
    yield sent("tool_choice[tool].name",
               Body(tools=[TOOL], tool_choice={"type": "tool", "name": "f"}),
               {"chat.tool_choice.function_name": "f", mode: "MODE_FUNCTION"})  # fmt: skip


def _thinking() -> Iterator[Parameter]:
    effort, hidden = "chat.reasoning_effort", "output.hide_reasoning"
    yield sent("thinking", {"type": "disabled"}, {effort: "none", hidden: True})
    enabled: Json = {"type": "enabled"}
    for budget, name in ((1024, "low"), (5000, "medium"), (10_000, "high")):
        thinking = enabled | {"budget_tokens": budget}
        yield sent("thinking[enabled].budget_tokens",
                   Body(max_tokens=20_000, thinking=thinking), {effort: name})  # fmt: skip
    for thinking in (enabled | {"budget_tokens": 1024}, {"type": "adaptive"}):
        kind = f"thinking[{thinking['type']}]"
        body = Body(max_tokens=2000, thinking=thinking | {"display": "omitted"})
        yield sent(f"{kind}.display", body, {hidden: True})
        bound = Body(max_tokens=2000, thinking=thinking | {"block_binding": "x"})
        yield advice(f"{kind}.block_binding", bound)
    yield sent("output_config", {"effort": "low"}, {effort: "low"})
    yield sent("output_config.effort", Body(output_config={"effort": "max"}), {effort: "max"})
    schema = {"constraint.json_schema": OPEN_TEXT}
    yield sent("output_config.format", Body(output_config={"format": FORMAT}), schema)
    yield sent("output_config.format[json_schema].schema",
               Body(output_config={"format": FORMAT}), schema)  # fmt: skip
    yield advice("output_config.task_budget", Body(output_config={"task_budget": {}}))
    yield sent("output_format", FORMAT, schema)
    yield sent("output_format[json_schema].schema", Body(output_format=FORMAT), schema)


MESSAGES = (
    sent("model", "x", {"model": "x"}),
    sent("messages", [USER], {"chat.messages": [{"role": "ROLE_USER", "parts": [{"text": "hi"}]}]}),
    sent("max_tokens", 7, {"stopping.max_tokens": 7, "stopping.cut_to_context": True}),
    sent("stream", True, {"output.single_message": None}, shows="event: message_start"),
    sent("stop_sequences", ["a", "b"], {"stopping.strings": ["a", "b"]}),
    sent("temperature", 0.5, {"sampling.temperature": 0.5}),
    checked("temperature", {"temperature": 1.5}, "temperature", 1.0),
    sent("top_p", 0.25, {"sampling.top_p": 0.25}),
    sent("top_k", 7, {"sampling.top_k": 7}),
    *_texts(),
    *_user(),
    *_assistant(),
    *_changes(),
    *_tools(),
    *_thinking(),
    advice("cache_control", {"type": "ephemeral"}),
    advice("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}),
    advice("speed", "fast"),
    advice("user_profile_id", "u"),
    advice("workspace_id", "w"),
    advice("service_tier", "standard_only"),
    advice("metadata", {"user_id": "u"}),
    advice("diagnostics", {"previous_message_id": "m"}),
    advice("inference_geo", "us"),
    advice("fallbacks", [{"model": "m"}]),
    advice("fallback_credit_token", {"token": "t"}),
    advice("billing_policy", {"type": "billing_policy"}),
    refused("container", "c"),
    refused("mcp_servers", [{"type": "url"}], []),
    refused("thread", {"type": "create"}),
    refused("compaction", {"type": "summarize"}),
)
