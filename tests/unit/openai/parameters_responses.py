"""The rows of parameters of /v1/responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

# Parameters with the same rows as in chat.
_SHARED = (
    "model", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop",
    "logit_bias", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos",
    "stop_token_ids", "include_stop_str_in_output", "skip_special_tokens", "priority",
    "cache_salt", "bad_words", "allowed_token_ids", "request_id", "session_id", "watermarking",
    "return_mm_kwargs", "mm_payload", "kv_transfer_params", "ec_transfer_params", "vllm_xargs",
)  # fmt: skip
ADVICE = {"type": "ephemeral"}
TEXT_ADVICE = ("prompt_cache_breakpoint", "cache_control")
CALL_ADVICE = ("caller", "async", "async_", "created_by", "parsed_arguments")
OUTPUT_ADVICE = ("caller", "created_by", "name", "namespace")
TOOL_ADVICE = ("allowed_callers", "async", "cache_control", "defer_loading", "output_schema")
USER = {"type": "message", "role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}
CUSTOM_CALL = {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "r"}
CUSTOM_OUTPUT = {"type": "custom_tool_call_output", "call_id": "c", "output": "r"}
FUNCTION = {"type": "function", "name": "f"}
CUSTOM = {"type": "custom", "name": "f"}
MESSAGE = "chat.messages.0"


def _said(*items: Json) -> Body:
    return Body(input=list(items))


def _parts(*parts: Json) -> Body:
    return _said(USER | {"content": list(parts)})


def _with_advice(
    at: str, names: tuple[str, ...], wrap: Callable[[Json], Body]
) -> Iterator[Parameter]:
    for name in names:
        yield advice(f"{at}.{name}", wrap({name: ADVICE}))


def _content(at: str, param: str, to: str, wrap: Callable[[Json], Body]) -> Iterator[Parameter]:
    """The parts of a message, or of an output; `to` is the text's place in the chat."""
    text = {"type": "input_text", "text": "x"}
    yield sent(f"{at}[input_text].text", wrap(text), {to: "x"})
    yield from _with_advice(f"{at}[input_text]", TEXT_ADVICE, lambda more: wrap(text | more))
    image = {"type": "input_image", "image_url": PNG, "detail": "low"}
    in_chat = "chat.messages.2.parts.0.image" if "output" in at else f"{MESSAGE}.parts.0.image"
    data = {f"{in_chat}.data": "AAAA", f"{in_chat}.mime_type": "image/png"}
    yield sent(f"{at}[input_image].image_url", wrap(image), data)
    yield sent(f"{at}[input_image].detail", wrap(image), {f"{in_chat}.detail": "low"})
    yield from _with_advice(f"{at}[input_image]", TEXT_ADVICE, lambda more: wrap(image | more))
    stored = wrap(image | {"file_id": "file-1"})
    yield refused(f"{at}[input_image].file_id", stored, None, param=f"{param}.file_id")
    file = {"type": "input_file"}
    for name in ("file_data", "file_id", "file_url", "filename", "detail", *TEXT_ADVICE):
        yield refused(f"{at}[input_file].{name}", wrap(file | {name: "x"}), param=f"{param}.type")


def _messages() -> Iterator[Parameter]:
    at = "input[message]"
    yield sent("input", "plain", {f"{MESSAGE}.parts.0.text": "plain"})
    yield sent("input", [USER | {"content": "x"}], {f"{MESSAGE}.parts.0.text": "x"})
    yield sent(
        f"{at}.role", _said(USER | {"role": "developer"}), {f"{MESSAGE}.role": "ROLE_DEVELOPER"}
    )
    yield sent(f"{at}.content", _said(USER | {"content": "x"}), {f"{MESSAGE}.parts.0.text": "x"})
    yield from _content(f"{at}.content", "input[0].content[0]", f"{MESSAGE}.parts.0.text", _parts)

    def answered(part: Json) -> Body:
        return _said(USER | {"role": "assistant", "content": [part]})

    text = {"type": "output_text", "text": "x"}
    written = f"{at}.content[output_text]"
    yield sent(f"{written}.text", answered(text), {f"{MESSAGE}.parts.0.text": "x"})
    yield from _with_advice(
        written,
        ("annotations", "logprobs", "parsed", "cache_control"),
        lambda more: answered(text | more),
    )
    refusal = answered({"type": "refusal", "refusal": "no"})
    yield sent(f"{at}.content[refusal].refusal", refusal, {f"{MESSAGE}.parts.0.refusal": "no"})
    for name, value in (("id", "msg_1"), ("status", "completed"), ("phase", "commentary")):
        yield advice(f"{at}.{name}", _said(USER | {name: value}))
    yield refused("input[item_reference].id", _said({"type": "item_reference", "id": "x"}),
                  param="input[0].type")  # fmt: skip


def _reasoning() -> Iterator[Parameter]:
    at = "input[reasoning]"
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "why"}]}
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]}
    for item, name, tag in (
        (thought, "content", "reasoning_text"),
        (summary, "summary", "summary_text"),
    ):
        to = {f"{MESSAGE}.reasoning": "why"}
        yield sent(f"{at}.{name}", _said(item, USER), to)
        yield sent(f"{at}.{name}[{tag}].text", _said(item, USER), to)
    for name, value in (("id", "rs_1"), ("status", "completed"), ("encrypted_content", "x")):
        yield advice(f"{at}.{name}", _said(thought | {name: value}, USER))


def _calls() -> Iterator[Parameter]:
    to = f"{MESSAGE}.tool_calls.0"
    for call, output, argument, arguments in (
        (CALL, OUTPUT, "arguments", '{"a":1}'),
        (CUSTOM_CALL, CUSTOM_OUTPUT, "input", '{"input":"x"}'),
    ):
        at = f"input[{call['type']}]"

        def called(more: Json, call: Json = call, output: Json = output) -> Body:
            return _said(call | more, output)

        yield sent(f"{at}.call_id", called({}), {f"{to}.id": "c"})
        yield sent(f"{at}.name", called({}), {f"{to}.name": "f"})
        yield sent(f"{at}.{argument}", called({}), {f"{to}.arguments": arguments})
        yield sent(f"{at}.namespace", called({"namespace": "n"}), {f"{to}.name": "n__f"})
        yield advice(f"{at}.id", called({"id": "fc_1"}))
        yield advice(f"{at}.status", called({"status": "completed"}))
        yield from _with_advice(at, CALL_ADVICE, called)

        at = f"input[{output['type']}]"

        def returned(more: Json, call: Json = call, output: Json = output) -> Body:
            return _said(call, output | more)

        result = "chat.messages.1"
        yield sent(f"{at}.call_id", returned({}), {f"{result}.tool_call_id": "c"})
        yield sent(f"{at}.output", returned({"output": "x"}), {f"{result}.parts.0.text": "x"})
        yield from _content(
            f"{at}.output",
            "input[1].output[0]",
            f"{result}.parts.0.text",
            lambda part, returned=returned: returned({"output": [part]}),
        )
        yield advice(f"{at}.id", returned({"id": "fco_1"}))
        yield advice(f"{at}.status", returned({"status": "completed"}))
        yield from _with_advice(at, OUTPUT_ADVICE, returned)


def _function(at: str, to: str, wrap: Callable[[Json], Body]) -> Iterator[Parameter]:
    param = at.replace("[function]", "[0]").replace("[namespace]", "[0]")
    for name, value, field in (
        ("name", "f", "name"),
        ("description", "d", "description"),
        ("parameters", CLOSED, "parameters_json"),
        ("strict", True, "strict"),
    ):
        want: Any = CLOSED_TEXT if name == "parameters" else value
        if name == "name":
            want = to + "f"
        yield sent(f"{at}.{name}", wrap(FUNCTION | {name: value}), {f"chat.tools.0.{field}": want})
    open_ = FUNCTION | {"parameters": OPEN, "strict": True}
    yield checked(f"{at}.strict", wrap(open_), f"{param}.parameters", False)
    yield from _with_advice(at, TOOL_ADVICE, lambda more: wrap(FUNCTION | more))


def _custom(at: str, to: str, wrap: Callable[[Json], Body]) -> Iterator[Parameter]:
    yield sent(f"{at}.name", wrap(CUSTOM), {"chat.tools.0.name": to + "f"})
    described = wrap(CUSTOM | {"description": "d"})
    yield sent(f"{at}.description", described, {"chat.tools.0.description": "d"})
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}
    with_grammar = wrap(CUSTOM | {"format": grammar})
    seen = {"chat.tools.0.description": "The input obeys this lark grammar:\nstart: /a/"}
    yield sent(f"{at}.format", with_grammar, seen)
    for name in ("syntax", "definition"):
        yield sent(f"{at}.format[grammar].{name}", with_grammar, seen)
    yield from _with_advice(at, TOOL_ADVICE, lambda more: wrap(CUSTOM | more))


def _tools() -> Iterator[Parameter]:
    yield sent("tools", [FUNCTION], {"chat.tools": [{"name": "f"}]})
    yield advice("tools", [{"type": "web_search", "external_web_access": False}])
    yield from _function("tools[function]", "", lambda tool: Body(tools=[tool]))
    yield from _custom("tools[custom]", "", lambda tool: Body(tools=[tool]))

    def namespaced(tool: Json, **more: Any) -> Body:
        return Body(tools=[{"type": "namespace", "name": "n", "tools": [tool], **more}])

    at = "tools[namespace]"
    yield sent(f"{at}.name", namespaced(FUNCTION), {"chat.tools.0.name": "n__f"})
    yield sent(f"{at}.tools", namespaced(FUNCTION), {"chat.tools": [{"name": "n__f"}]})
    yield shown(f"{at}.description", namespaced(FUNCTION, description="ds"), '"description":"ds"')
    yield from _function(f"{at}.tools[function]", "n__", namespaced)
    yield from _custom(f"{at}.tools[custom]", "n__", namespaced)
    yield from _tool_choice()
    single = Body(tools=[FUNCTION], parallel_tool_calls=False)
    yield sent("parallel_tool_calls", single, {"chat.parallel_tool_calls": False})
    yield shown("max_tool_calls", 3, '"max_tool_calls":3')


def _tool_choice() -> Iterator[Parameter]:
    to = "chat.tool_choice"
    for mode in ("none", "auto", "required"):
        body = Body(tools=[FUNCTION], tool_choice=mode)
        yield sent("tool_choice", body, {f"{to}.mode": f"MODE_{mode.upper()}"})
    for tool in (FUNCTION, CUSTOM):
        named = Body(tools=[tool], tool_choice=tool)
        sets = {f"{to}.mode": "MODE_FUNCTION", f"{to}.function_name": "f"}
        yield sent(f"tool_choice[{tool['type']}].name", named, sets)
    at, spaces = (
        "tool_choice[allowed_tools]",
        [{"type": "namespace", "name": "n", "tools": [FUNCTION]}],
    )
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [FUNCTION]}
    body = Body(tools=[FUNCTION], tool_choice=allowed)
    names = {f"{to}.allowed_functions": ["f"]}
    yield sent(f"{at}.mode", body, {f"{to}.mode": "MODE_REQUIRED"})
    for name in ("tools", "tools[].type", "tools[].name"):
        yield sent(f"{at}.{name}", body, names)
    inner = allowed | {"tools": [FUNCTION | {"namespace": "n"}]}
    yield sent(
        f"{at}.tools[].namespace",
        Body(tools=spaces, tool_choice=inner),
        {f"{to}.allowed_functions": ["n__f"]},
    )


def _format(**members: Any) -> Body:
    named = {"type": "json_schema", "name": "n", "schema": CLOSED, **members}
    return Body(text={"format": named})


def _text() -> Iterator[Parameter]:
    at = "text.format[json_schema]"
    constraint = {"constraint.json_schema": CLOSED_TEXT}
    yield sent("text", _format(), constraint)
    yield sent("text.format", _format(), constraint)
    yield sent(f"{at}.schema", _format(), constraint)
    yield checked(f"{at}.name", _format(name="a b"), "text.format.name", "n")
    yield checked(f"{at}.strict", _format(schema=OPEN, strict=True), "text.format", False)
    yield shown(f"{at}.description", _format(description="ds"), '"description":"ds"')
    yield shown("text.verbosity", Body(text={"verbosity": "low"}), '"verbosity":"low"')


def _reasoning_options() -> Iterator[Parameter]:
    effort = Body(reasoning={"effort": "low"})
    yield sent("reasoning", effort, {"chat.reasoning_effort": "low"})
    yield sent("reasoning.effort", effort, {"chat.reasoning_effort": "low"})
    for name in ("summary", "generate_summary"):
        body = Body(reasoning={name: "concise"})
        yield shown(f"reasoning.{name}", body, '"summary":"concise"')
    yield advice("reasoning.context", Body(reasoning={"context": "all_turns"}))
    yield refused("reasoning.mode", Body(reasoning={"mode": "pro"}), None, "standard",
                  param="reasoning.mode")  # fmt: skip


def _cache_options() -> Iterator[Parameter]:
    at = "prompt_cache_options"
    yield advice(at, {"mode": "implicit"})
    for name in ("mode", "ttl", "comparison_response_id"):
        yield advice(f"{at}.{name}", Body(prompt_cache_options={name: "x"}))
    prewarm = Body(prompt_cache_options={"prewarm": True})
    yield refused(f"{at}.prewarm", prewarm, None, False, param=f"{at}.prewarm")


def _repeated() -> Iterator[Parameter]:
    """What only the response shows."""
    for name, value in (
        ("user", "u"),
        ("safety_identifier", "s"),
        ("prompt_cache_key", "k"),
        ("prompt_cache_retention", "24h"),
    ):
        yield shown(name, value, f'"{name}":"{value}"')
    yield shown("metadata", {"k": "v"}, '"metadata":{"k":"v"}')


RESPONSES = (
    *(parameter for parameter in GENERATION if parameter.path in _SHARED),
    *(p for p in GENERATION if p.path.startswith("structured_outputs")),
    sent("stream", True, {"output.single_message": None}, shows="data: "),
    *_messages(),
    *_reasoning(),
    *_calls(),
    sent("instructions", "do", {f"{MESSAGE}.role": "ROLE_SYSTEM", f"{MESSAGE}.parts.0.text": "do"}),
    advice("stream_options", Body(stream=True, stream_options={"include_obfuscation": True})),
    advice(
        "stream_options.include_obfuscation",
        Body(stream=True, stream_options={"include_obfuscation": True}),
    ),
    sent("max_output_tokens", 5, {"stopping.max_tokens": 5}, shows='"max_output_tokens":5'),
    *_text(),
    *_reasoning_options(),
    *_tools(),
    sent("include", ["message.output_text.logprobs"], {"output.logprobs": 0}, shows='"bytes":['),
    advice("include", ["reasoning.encrypted_content"]),
    sent("top_logprobs", 2, {"output.logprobs": 2}, shows='"top_logprobs":[{'),
    refused("truncation", "auto", "disabled"),
    *_repeated(),
    advice("service_tier", "flex"),
    *_cache_options(),
    advice("client_metadata", {"a": {"b": 1}}),
    advice("store", True),
    sent("chat_template_kwargs", {"a": 1}, {"chat.template_arguments_json": '{"a": 1}'}),
    sent("include_reasoning", False, {"output.hide_reasoning": True}),
    refused("previous_response_id", "resp_1"),
    refused("conversation", "conv_1"),
    refused("prompt", {"id": "pmpt_1"}),
    refused("background", True, False),
    refused("background_options", {"completion_window": "2h"}),
    refused("access_programs", {"cyber": "standard"}),
    refused("context_management", [{"type": "compaction"}], []),
    refused("image", {"context_compression": "enabled"}),
    refused("moderation", {"model": "m"}),
    refused("enable_response_messages", True, False),
    refused("previous_input_messages", [{}], []),
    refused("media_io_kwargs", {"a": 1}, {}),
    refused("mm_processor_kwargs", {"a": 1}, {}),
)
