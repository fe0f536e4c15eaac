"""The rows of parameters that only chat has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.unit.openai.parameters import (
    CLOSED,
    CLOSED_TEXT,
    GENERATION,
    OPEN,
    PNG,
    Body,
    Json,
    Parameter,
    advice,
    checked,
    refused,
    sent,
    shown,
)

# Members that are accepted without effect, of parts, messages, tool calls and tools.
PART_ADVICE = ("cache_control", "prompt_cache_breakpoint", "annotations", "citations", "_meta",
               "meta")  # fmt: skip
MESSAGE_ADVICE = ("cache_control", "copilot_cache_control", "provider_specific_fields",
                  "extra_content")  # fmt: skip
RESPONSE_ADVICE = ("annotations", "citations", "context", "executed_tools", "parsed",
                   "reasoning_details", "thinking_blocks")  # fmt: skip
CALL_ADVICE = ("cache_control", "provider_specific_fields", "extra_content", "index")
FUNCTION_CALL_ADVICE = ("provider_specific_fields", "parsed_arguments")
TOOL_ADVICE = ("cache_control", "eager_input_streaming", "annotations", "title", "icons", "_meta")
# Members of other messages that may be null or [].
OF_A_MODEL = ("tool_calls", "function_call", "refusal", "reasoning", "reasoning_content", "audio",
              "annotations")  # fmt: skip
OF_A_RESULT = ("tool_call_id",)
NOTHING = {
    **dict.fromkeys(("system", "developer", "user", "function"), OF_A_MODEL + OF_A_RESULT),
    "assistant": ("images", *OF_A_RESULT),
    "tool": OF_A_MODEL,
}
ADVICE = {"type": "ephemeral"}
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "r"}
TOOL = {"type": "function", "function": {"name": "f"}}


def _said(role: str, **parameters: Any) -> Body:
    """A valid chat with a message of this role and the tool messages that it requires."""
    message = {"role": role, **parameters}
    if role == "tool":
        asked = {"role": "assistant", "tool_calls": [CALL]}
        return Body(messages=[asked, {"tool_call_id": "c", **message}])
    return Body(messages=[message, RESULT] if parameters.get("tool_calls") else [message])


def _messages() -> Iterator[Parameter]:
    said = {"role": "ROLE_USER", "parts": [{"text": "hi"}]}
    yield sent("messages", [USER], {"chat.messages": [said]})
    yield sent("messages", '[{"role":"user","content":"j"}]', _text("j"))
    yield sent("messages", "plain", _text("plain"))
    for role in ("system", "developer", "user", "assistant", "tool"):
        at = f"messages[{role}]"
        i = 1 if role == "tool" else 0
        yield sent(f"{at}.content", _said(role, content="said"), _text("said", i))
        part = f"{at}.content[text]"
        yield sent(f"{part}.text", _said(role, content=[_part("x")]), _text("x", i))
        yield from _advice(part, PART_ADVICE, lambda more, role=role: _said(
            role, content=[_part("x") | more]))  # fmt: skip
        named = _said(role, content="said", name="ann")
        yield sent(f"{at}.name", named, {f"chat.messages.{i}.name": "ann"})
    yield from _media()
    yield from _assistant()
    yield sent(
        "messages[tool].tool_call_id",
        _said("tool", content="r"),
        {"chat.messages.1.tool_call_id": "c"},
    )
    called = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    answered = Body(messages=[called, {"role": "function", "name": "f", "content": "r"}])
    yield sent("messages[function].content", answered, _text("r", 1))
    yield sent("messages[function].name", answered, {"chat.messages.1.name": "f"})
    yield from _accepted_members(answered)


def _advice(at: str, names: Iterable[str], wrap: Callable[[Json], Body]) -> Iterator[Parameter]:
    """Members without effect; `wrap` makes the body that has them."""
    for name in names:
        yield advice(f"{at}.{name}", wrap({name: ADVICE}))


def _accepted_members(answered: Body) -> Iterator[Parameter]:
    """Parameters of messages for other vendors, and of clients with one type for all messages."""

    def with_message(role: str, more: Json) -> Body:
        if role != "function":
            return _said(role, content="x", **more)
        called, result = answered["messages"]
        return Body(messages=[called, result | more])

    for role, nothing in NOTHING.items():
        at = f"messages[{role}]"
        names = (*MESSAGE_ADVICE, *(RESPONSE_ADVICE if role == "assistant" else ()))
        yield from _advice(at, names, lambda more, role=role: with_message(role, more))
        for name in nothing:
            yield advice(f"{at}.{name}", with_message(role, {name: []}))


def _part(text: str) -> Json:
    return {"type": "text", "text": text}


def _text(text: str, index: int = 0) -> Json:
    return {f"chat.messages.{index}.parts.0.text": text}


def _media() -> Iterator[Parameter]:
    at = "messages[user].content"
    url = {"url": PNG, "detail": "low"}
    image_part = {"type": "image_url", "image_url": url}
    image = "chat.messages.0.parts.0.image"
    body = _said("user", content=[image_part])
    sets = {f"{image}.data": "AAAA", f"{image}.mime_type": "image/png"}
    yield sent(f"{at}[image_url].image_url", body, sets)
    yield sent(f"{at}[image_url].image_url.url", body, sets)
    yield sent(f"{at}[image_url].image_url.detail", body, {f"{image}.detail": "low"})
    yield from _advice(
        f"{at}[image_url]", PART_ADVICE, lambda more: _said("user", content=[image_part | more])
    )
    fetched = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    yield refused(
        f"{at}[image_url].image_url.url",
        _said("user", content=[fetched]),
        param="messages[0].content[0].image_url.url",
    )
    for kind in ("input_audio", "file"):
        part = {"type": kind, kind: {}} | dict.fromkeys(PART_ADVICE, ADVICE)
        for parameter in (kind, *PART_ADVICE):
            yield refused(
                f"{at}[{kind}].{parameter}",
                _said("user", content=[part]),
                param="messages[0].content[0].type",
            )


def _assistant() -> Iterator[Parameter]:
    at, to = "messages[assistant]", "chat.messages.0"
    refusal_part = {"type": "refusal", "refusal": "no"}
    declined = _said("assistant", content=[refusal_part])
    yield from _advice(
        f"{at}.content[refusal]",
        PART_ADVICE,
        lambda more: _said("assistant", content=[refusal_part | more]),
    )
    yield sent(f"{at}.content[refusal].refusal", declined, {f"{to}.parts.0.refusal": "no"})
    yield sent(f"{at}.refusal", _said("assistant", refusal="no"), {f"{to}.parts.0.refusal": "no"})
    for name in ("reasoning", "reasoning_content"):
        body = _said("assistant", content="x", **{name: "why"})
        yield sent(f"{at}.{name}", body, {f"{to}.reasoning": "why"})
    spoken = _said("assistant", content="x", audio={"id": "a"})
    yield refused(f"{at}.audio", spoken, param="messages[0].audio")
    body = _said("assistant", tool_calls=[CALL])
    call = f"{to}.tool_calls.0"
    carried = [{"id": "c", "name": "f", "arguments": "{}"}]
    yield sent(f"{at}.tool_calls", body, {f"{to}.tool_calls": carried})
    yield sent(f"{at}.tool_calls[function].id", body, {f"{call}.id": "c"})
    function = f"{at}.tool_calls[function].function"
    yield sent(function, body, {f"{call}.name": "f", f"{call}.arguments": "{}"})
    yield sent(f"{function}.name", body, {f"{call}.name": "f"})
    yield sent(f"{function}.arguments", body, {f"{call}.arguments": "{}"})
    yield from _advice(
        f"{at}.tool_calls[function]",
        CALL_ADVICE,
        lambda more: _said("assistant", tool_calls=[CALL | more]),
    )
    called = {"name": "f", "arguments": "{}"}
    yield from _advice(
        function,
        FUNCTION_CALL_ADVICE,
        lambda more: _said("assistant", tool_calls=[CALL | {"function": called | more}]),
    )
    yield from _advice(
        f"{at}.function_call",
        FUNCTION_CALL_ADVICE,
        lambda more: _said("assistant", function_call=called | more),
    )
    custom_call = {"type": "custom", "id": "c", "custom": {}}
    custom = _said("assistant", tool_calls=[custom_call | dict.fromkeys(CALL_ADVICE, ADVICE)])
    for name in ("id", "custom", *CALL_ADVICE):
        param = "messages[0].tool_calls[0].type"
        yield refused(f"{at}.tool_calls[custom].{name}", custom, param=param)
    old = _said("assistant", function_call={"name": "f", "arguments": "{}"})
    yield sent(f"{at}.function_call", old, {f"{call}.name": "f", f"{call}.arguments": "{}"})
    yield sent(f"{at}.function_call.name", old, {f"{call}.name": "f"})
    yield sent(f"{at}.function_call.arguments", old, {f"{call}.arguments": "{}"})


def _functions(at: str, wrap: Any) -> Iterator[Parameter]:
    """The parameters of a function, in `tools` or in the older `functions`."""
    param = at.replace("functions[]", "functions[0]").replace("tools[function]", "tools[0]")
    for name, value, field in (
        ("name", "f", "name"),
        ("description", "d", "description"),
        ("parameters", CLOSED, "parameters_json"),
        ("strict", True, "strict"),
    ):
        want = CLOSED_TEXT if name == "parameters" else value
        yield sent(
            f"{at}.{name}", wrap({"name": "f", name: value}), {f"chat.tools.0.{field}": want}
        )
    open_ = {"name": "f", "parameters": OPEN, "strict": True}
    yield checked(f"{at}.strict", wrap(open_), f"{param}.parameters", False)
    yield from _advice(at, TOOL_ADVICE, lambda more: wrap({"name": "f"} | more))
    later = wrap({"name": "f", "defer_loading": True})
    yield refused(f"{at}.defer_loading", later, None, False, param=f"{param}.defer_loading")


def _tools() -> Iterator[Parameter]:
    yield sent("tools", [TOOL], {"chat.tools": [{"name": "f"}]})
    yield sent("tools[function].function", Body(tools=[TOOL]), {"chat.tools.0.name": "f"})
    yield from _functions(
        "tools[function].function",
        lambda function: Body(tools=[{"type": "function", "function": function}]),
    )
    yield refused(
        "tools[function].defer_loading",
        Body(tools=[TOOL | {"defer_loading": True}]),
        None,
        False,
        param="tools[0].defer_loading",
    )
    yield from _advice("tools[function]", TOOL_ADVICE, lambda more: Body(tools=[TOOL | more]))
    custom = Body(tools=[{"type": "custom", "custom": {"name": "c"}}])
    yield refused("tools[custom].custom", custom, param="tools[0].type")
    yield from _tool_choice()
    single = Body(tools=[TOOL], parallel_tool_calls=False)
    yield sent("parallel_tool_calls", single, {"chat.parallel_tool_calls": False})
    one = Body(functions=[{"name": "f"}])
    yield sent("functions", one, {"chat.tools": [{"name": "f"}]}, shows='"function_call":{')
    yield from _functions("functions[]", lambda function: Body(functions=[function]))
    named = Body(functions=[{"name": "f"}], function_call={"name": "f"})
    choice = {
        "chat.tool_choice.mode": "MODE_FUNCTION",
        "chat.tool_choice.function_name": "f",
    }
    yield sent("function_call", named, choice)
    yield sent("function_call.name", named, choice)


def _tool_choice() -> Iterator[Parameter]:
    to = "chat.tool_choice"
    for mode in ("none", "auto", "required"):
        body = Body(tools=[TOOL], tool_choice=mode)
        yield sent("tool_choice", body, {f"{to}.mode": f"MODE_{mode.upper()}"})
    named = Body(tools=[TOOL], tool_choice=TOOL)
    sets = {f"{to}.mode": "MODE_FUNCTION", f"{to}.function_name": "f"}
    yield sent("tool_choice[function].function", named, sets)
    yield sent("tool_choice[function].function.name", named, sets)
    allowed = {"mode": "required", "tools": [TOOL]}
    body = Body(tools=[TOOL], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    at = "tool_choice[allowed_tools].allowed_tools"
    mode, names = {f"{to}.mode": "MODE_REQUIRED"}, {f"{to}.allowed_functions": ["f"]}
    yield sent(at, body, mode | names)
    yield sent(f"{at}.mode", body, mode)
    for name in ("tools", "tools[function].function", "tools[function].function.name"):
        yield sent(f"{at}.{name}", body, names)
    custom = Body(tools=[TOOL], tool_choice={"type": "custom", "custom": {"name": "c"}})
    yield refused("tool_choice[custom].custom", custom, param="tool_choice.type")


CHAT = (
    *GENERATION,
    *_messages(),
    sent("max_completion_tokens", 5, {"stopping.max_tokens": 5}),
    sent("max_tokens", 6, {"stopping.max_tokens": 6}),
    sent("logprobs", True, {"output.logprobs": 0}, shows='"logprobs":{"content":['),
    sent("top_logprobs", Body(logprobs=True, top_logprobs=2), {"output.logprobs": 2}),
    *_tools(),
    sent("reasoning_effort", "low", {"chat.reasoning_effort": "low"}),
    shown("metadata", {"k": "v"}, '"metadata":{"k":"v"}'),
    shown("service_tier", "flex", '"service_tier":"default"'),
    advice("verbosity", "low"),
    advice("store", True),
    advice("safety_identifier", "s"),
    advice("prompt_cache_key", "k"),
    advice("prompt_cache_retention", "24h"),
    advice("prompt_cache_options", {"ttl": "30m"}),
    advice("prompt_cache_options.ttl", Body(prompt_cache_options={"ttl": "30m"})),
    advice("prompt_cache_options.mode", Body(prompt_cache_options={"mode": "explicit"})),
    advice("modalities", ["text"]),
    refused("modalities", ["text", "audio"]),
    sent("add_generation_prompt", False, {"chat.add_generation_prompt": False}),
    sent("continue_final_message", True, {"chat.continue_final_message": True}),
    sent("chat_template_kwargs", {"a": 1}, {"chat.template_arguments_json": '{"a": 1}'}),
    refused("audio", {"voice": "ash", "format": "wav"}),
    refused("prediction", {"type": "content", "content": "x"}),
    refused("web_search_options", {}),
    refused("moderation", {"model": "m"}),
    refused("chat_template", "{{ messages }}"),
    refused("add_special_tokens", True, False),
    refused("documents", [{"text": "x"}], []),
    sent("echo", True, {"output.echo": True}),
    sent("include_reasoning", False, {"output.hide_reasoning": True}),
    refused("truncate_prompt_tokens", -1),
    refused("truncation_side", "middle", "left", "right"),
    refused("return_prompt_text", True, False),
    refused("mm_processor_kwargs", {"a": 1}, {}),
    refused("media_io_kwargs", {"a": 1}, {}),
)

# Of these members, tokenizations take all that chats take.
SHARED_WITH_CHATS = ("messages", "tools", "tool_choice")


def is_shared(path: str) -> bool:
    """Whether a parameter is one of them, or in one."""
    return re.split(r"[.\[]", path)[0] in SHARED_WITH_CHATS


_TEXT = Body(prompt="x", messages=None)
TOKENIZATION = (
    *(row for row in CHAT if is_shared(row.path)),
    sent("prompt", _TEXT, {"text": "x"}),
    checked("prompt", {"prompt": "x"}, "prompt", None),
    sent("model", "x", {"model": "x"}),
    sent(
        "add_special_tokens",
        Body(_TEXT, add_special_tokens=False),
        {"add_special_tokens": False},
    ),
    checked("add_special_tokens", {"add_special_tokens": True}, "add_special_tokens", False),
    sent("return_token_strs", True, {"token_names": True}, shows='"token_strs":["a"]'),
    sent("reasoning_effort", "low", {"chat.reasoning_effort": "low"}),
    sent("add_generation_prompt", False, {"chat.add_generation_prompt": False}),
    sent("continue_final_message", True, {"chat.continue_final_message": True}),
    sent("chat_template_kwargs", {"a": 1}, {"chat.template_arguments_json": '{"a": 1}'}),
    refused("chat_template", "{{ messages }}"),
    refused("mm_processor_kwargs", {"a": 1}, {}),
    refused("media_io_kwargs", {"a": 1}, {}),
)
