"""The cases of /v1/responses that any server with any text model can be asked to hold."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from bench.responses_api import (
    AGENTS,
    CITY,
    CODEX,
    FORCED,
    FREE,
    ONE_CALL,
    OTHER_CALL,
    PATCH,
    QUESTION,
    SEARCH,
    TOOLS,
    Api,
    Case,
    called,
    final,
    message,
    names,
    need,
    only,
    returned,
    said,
    same,
    text_of,
)

CASES: Final[list[Case]] = []
"""Those with a number are the cases of that number of tests/contract/test_codex_cases.py."""

LEFT_OUT: Final = {
    "14 parallel calls are items of their own": "the model decides on a second call",
    "18 reasoning comes before the answer": "needs a reasoning model",
    "22 viewed image reaches the model": "needs a vision model",
    "23 attached image reaches the model": "needs a vision model",
}
"""Cases of the tests that need a model with a known answer, and why."""


def case(name: str) -> Callable[[Callable[[Api], Awaitable[None]]], None]:
    """Adds a function to CASES."""

    def add(run: Callable[[Api], Awaitable[None]]) -> None:
        CASES.append(Case(name, run))

    return add


def forced(api: Api, *tools: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """The body of a request that must be answered by a call of one of the tools."""
    return api.asked("Go on.", **{"tools": [*tools], "tool_choice": "required", **changed})


@case("01 request with Codex's headers is a stream")
async def _(api: Api) -> None:
    found = names(await api.stream(api.asked(QUESTION)))
    need(found[-1] in ("completed", "incomplete"), f"the last event is {found[-1]}")


@case("02 answer has every event of a message")
async def _(api: Api) -> None:
    found = names(await api.stream(api.asked(QUESTION, tool_choice="none")))
    whole = ["created", "in_progress", "output_item.added", "content_part.added",
             "output_text.done", "content_part.done", "output_item.done"]  # fmt: skip
    same([name for name in found[:-1] if not name.endswith(".delta")], whole, "the order")
    need("output_text.delta" in found, "no output_text.delta")
    need(found[-1] in ("completed", "incomplete"), f"the last event is {found[-1]}")


@case("03 response has an id and its usage")
async def _(api: Api) -> None:
    response = final(await api.stream(api.asked("Hello")))
    need(response["id"].startswith("resp_"), f"id {response['id']}")
    usage = response["usage"]
    same(usage["total_tokens"], usage["input_tokens"] + usage["output_tokens"], "total_tokens")
    need(usage["input_tokens_details"]["cached_tokens"] >= 0, "no cached_tokens")
    same(usage["output_tokens_details"]["reasoning_tokens"], 0, "reasoning_tokens")


@case("04 item done has the whole message")
async def _(api: Api) -> None:
    found = await api.stream(api.asked("Hello", tool_choice="none"))
    deltas = "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta")
    (done,) = [e["item"] for e in found if e["type"] == "response.output_item.done"]
    same(text_of(done), deltas, "the item's text")
    same(text_of(only(final(found), "message")), deltas, "the response's text")


@case("05 ids of events are those of the response")
async def _(api: Api) -> None:
    for body in (api.asked("Hello", tool_choice="none"), forced(api, ONE_CALL)):
        found = await api.stream(body)
        ids = {item["id"] for item in final(found)["output"]}
        seen = {event["item_id"] for event in found if "item_id" in event}
        seen |= {event["item"]["id"] for event in found if "item" in event}
        need(seen == ids, f"{len(seen | ids)} ids for {len(ids)} item")


@case("06 parameters are repeated")
async def _(api: Api) -> None:
    response = final(await api.stream(api.asked("Hello")))
    for name in ("store", "prompt_cache_key", "parallel_tool_calls", "tool_choice"):
        need(name in response, f"no {name}")
        same(response[name], CODEX[name], name)
    same((response["reasoning"] or {}).get("summary"), "auto", "reasoning.summary")


@case("07 forced function call has arguments deltas and done")
async def _(api: Api) -> None:
    tools = [ONE_CALL, *TOOLS[1:]]
    found = await api.stream(forced(api, *tools, tool_choice=FORCED))
    need("function_call_arguments.delta" in names(found), "no function_call_arguments.delta")
    done = [e for e in found if e["type"] == "response.function_call_arguments.done"]
    same(len(done), 1, "the number of function_call_arguments.done")
    need(json.loads(done[0]["arguments"])["cmd"] in ("pwd", "ls"), done[0]["arguments"])
    only(final(found), "function_call")


@case("08 added call has its name and call_id")
async def _(api: Api) -> None:
    found = await api.stream(forced(api, ONE_CALL))
    (added,) = [e["item"] for e in found if e["type"] == "response.output_item.added"]
    same((added["name"], added["arguments"]), ("exec_command", ""), "name and arguments")
    same(added["call_id"], only(final(found), "function_call")["call_id"], "call_id")


@case("09 output of the command reaches the prompt")
async def _(api: Api) -> None:
    await api.prompt_grows(called("function_call", name="exec_command", arguments='{"cmd":"x"}'))


@case("10 call of a namespace has namespace and name")
async def _(api: Api) -> None:
    found = await api.stream(forced(api, {**AGENTS, "tools": [ONE_CALL]}))
    call = only(final(found), "function_call")
    wanted = ("multi_agent_v1", "exec_command")
    same((call.get("namespace"), call["name"]), wanted, "namespace and name")
    (added,) = [e["item"] for e in found if e["type"] == "response.output_item.added"]
    same(added.get("namespace"), "multi_agent_v1", "namespace of the added item")


@case("11 call of a namespace can be sent back")
async def _(api: Api) -> None:
    place = {"namespace": "multi_agent_v1", "name": "close_agent"}
    await api.prompt_grows(called("function_call", **place, arguments='{"target":"bob"}'))


async def _custom(api: Api, tool: dict[str, Any]) -> None:
    found = await api.stream(forced(api, tool))
    call = only(final(found), "custom_tool_call")
    same(call["name"], "apply_patch", "name")
    need("custom_tool_call_input.delta" in names(found), "no custom_tool_call_input.delta")
    need("function_call_arguments.delta" not in names(found), "deltas of a function")
    if final(found)["status"] == "completed":
        need("custom_tool_call_input.done" in names(found), "no custom_tool_call_input.done")


@case("12 custom tool with a grammar, as Codex's apply_patch, has its input as text")
async def _(api: Api) -> None:
    await _custom(api, PATCH)


@case("12b custom tool without a grammar has its input as text")
async def _(api: Api) -> None:
    await _custom(api, FREE)


@case("13 call of a custom tool can be sent back")
async def _(api: Api) -> None:
    call = called("custom_tool_call", name="apply_patch", input="patch")
    await api.prompt_grows(call, tools=[FREE])


@case("15 one call without parallel calls")
async def _(api: Api) -> None:
    body = forced(api, ONE_CALL, OTHER_CALL, parallel_tool_calls=False)
    only(await api.plain(body), "function_call")


@case("16 tools of unknown types are accepted")
async def _(api: Api) -> None:
    others = [{"type": "local_shell"}, {"type": "unheard_of", "options": [1]}]
    await api.plain(api.asked("Hello", tools=[*TOOLS, *others]))


@case("16b tool_search of Codex is accepted")
async def _(api: Api) -> None:
    await api.plain(api.asked("Hello", tools=[*TOOLS, SEARCH]))


@case("17 only tools of others are a chat without tools")
async def _(api: Api) -> None:
    only(await api.plain(api.asked("Hello", tools=[{"type": "web_search"}])), "message")


@case("19 reasoning is sent back")
async def _(api: Api) -> None:
    part = {"type": "reasoning_text", "text": "I look."}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [part]}
    call = called("function_call", name="exec_command", arguments='{"cmd":"pwd"}')
    await api.plain(api.asked("Hello", thought, call, returned(call, "/w")))


@case("20 encrypted reasoning of others is accepted")
async def _(api: Api) -> None:
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    await api.plain(api.asked("Hello", sealed, said("a"), message("user", "And?", 5)))


@case("21 commentary before a call is accepted")
async def _(api: Api) -> None:
    call = called("function_call", name="exec_command", arguments="{}")
    comment = {**said("I look."), "phase": "commentary", "status": "completed"}
    await api.plain(api.asked("Hello", comment, call, returned(call, "/w")))


@case("24 aborted call with half of its arguments is accepted")
async def _(api: Api) -> None:
    call = called("function_call", name="exec_command", arguments="{")
    body = api.asked("Hello", call, returned(call, "aborted"), message("user", "Stop.", 6))
    await api.plain(body)


@case("25 final answer of a schema")
async def _(api: Api) -> None:
    text = {"format": CITY, "verbosity": "low"}
    response = await api.plain(api.asked("Which city?", text=text, tool_choice="none"))
    answer = json.loads(text_of(only(response, "message")))
    need(answer in ({"city": "Rome"}, {"city": "Paris"}), f"the answer is {answer}")


@case("25b the schema holds with tools that may be called")
async def _(api: Api) -> None:
    response = await api.plain(api.asked("Which city?", text={"format": CITY}))
    for item in response["output"]:
        if item["type"] == "message":
            need(json.loads(text_of(item)).keys() == {"city"}, f"the answer is {text_of(item)}")


@case("26 too long a conversation has a code that Codex knows")
async def _(api: Api) -> None:
    status, error = await api.refused(api.asked("x " * 9000, stream=True))
    found = (status, error.get("code"))
    same(found, (400, "context_length_exceeded"), "status and code")


@case("27 answer that runs out of tokens is incomplete")
async def _(api: Api) -> None:
    found = await api.stream(api.asked(QUESTION, tool_choice="none", max_output_tokens=2))
    same(names(found)[-1], "incomplete", "the last event")
    reason = {"reason": "max_output_tokens"}
    same(final(found)["incomplete_details"], reason, "incomplete_details")
    same(final(found)["output"][-1]["status"], "incomplete", "the item's status")


@case("28 unknown model is 404 before the stream")
async def _(api: Api) -> None:
    status, error = await api.refused(api.asked("Hello", model="none", stream=True))
    same((status, error.get("code")), (404, "model_not_found"), "status and code")


@case("29 effort and instructions are repeated")
async def _(api: Api) -> None:
    reasoning = {"effort": "medium", "summary": "auto"}
    body = api.asked("Hello", instructions="You are Codex.", reasoning=reasoning)
    response = final(await api.stream(body))
    same(response["instructions"], "You are Codex.", "instructions")
    same((response["reasoning"] or {}).get("effort"), "medium", "reasoning.effort")


@case("30 plain response is the streamed one")
async def _(api: Api) -> None:
    for body in (api.asked(QUESTION, tool_choice="none"), forced(api, ONE_CALL)):
        whole, streamed = await api.plain(body), final(await api.stream(body))
        texts = [[text_of(item) for item in each["output"]] for each in (whole, streamed)]
        same(texts[1], texts[0], "the streamed text")
        extra = set(whole) ^ set(streamed)
        need(not extra, f"only one of the two has {', '.join(sorted(extra))}")


@case("rule: sequence numbers count from 0")
async def _(api: Api) -> None:
    found = await api.stream(api.asked("Hello"))
    numbers = [event.get("sequence_number") for event in found]
    same(numbers, list(range(len(found))), "the sequence")


@case("rule: one response, which begins in progress and ends once")
async def _(api: Api) -> None:
    found = await api.stream(api.asked("Hello"))
    ends = [name for name in names(found) if name in ("completed", "incomplete", "failed")]
    same(ends, names(found)[-1:], "the end")
    same([e["response"]["status"] for e in found[:2]], ["in_progress"] * 2, "the status")
    need(len({e["response"]["id"] for e in (*found[:2], found[-1])}) == 1, "more than one id")


@case("rule: events of an item have its place, and it begins without content")
async def _(api: Api) -> None:
    found = await api.stream(api.asked("Hello", tool_choice="none"))
    for event in found[2:-1]:
        need(event.get("output_index") == 0, f"{event['type']} at {event.get('output_index')}")
    begun = found[2]["item"]
    found_now = (begun["status"], begun["role"], begun["content"])
    same(found_now, ("in_progress", "assistant", []), "status, role and content")


@case("rule: a refused value is named")
async def _(api: Api) -> None:
    status, error = await api.refused(api.asked("Hello", temperature=9))
    same((status, error.get("param")), (400, "temperature"), "status and param")
