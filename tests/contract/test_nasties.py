"""Hand-written hostile requests over a real socket, each with its exact status, code and param.

RFC 8259 leaves duplicate names of an object open. Here every value of a duplicate parameter must be
valid, and the last one counts. The body is parsed once and its text is not read again, so no second
parser can disagree about the request. Refusing duplicates would make every request check all keys.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually

CHAT, COMPLETION, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
IMAGES = "/v1/images/generations"
JSON_TYPE = {"content-type": "application/json"}
HEAD = b'{"model":"scripted","max_tokens":1,'
HI = HEAD + b'"messages":[{"role":"user","content":"hi"}]'
USER = {"role": "user", "content": "hi"}
OK = (200, None, None)
NOT_JSON = (400, None, None)
TYPE, VALUE, UNKNOWN = "invalid_type", "invalid_value", "unknown_parameter"
LONG_LIST, LONG_TEXT = "array_above_max_length", "string_above_max_length"
MISSING = "missing_required_parameter"
MEBIBYTE = 1 << 20

Expected = tuple[int, str | None, str | None]
Row = tuple[str, str, bytes, Expected]


def wrong(code: str | None, param: str | None) -> Expected:
    return 400, code, param


def chat(name: str, parameters: bytes | dict[str, Any], *expected: Any) -> Row:
    """A chat request with more parameters; as bytes where no JSON encoder would write them."""
    if isinstance(parameters, dict):
        basic = {"model": "scripted", "max_tokens": 1, "messages": [USER]}
        return name, CHAT, json.dumps(basic | parameters).encode(), _expected(expected)
    return name, CHAT, HI + b"," + parameters + b"}", _expected(expected)


def turns(name: str, message: dict[str, Any] | list[Any], *expected: Any) -> Row:
    """A chat request with other messages."""
    messages = message if isinstance(message, list) else [message]
    return chat(name, {"messages": messages}, *expected)


def part(name: str, content: Any, *expected: Any) -> Row:
    """A chat request with other content in its user message."""
    return turns(name, {"role": "user", "content": content}, *expected)


def completion(name: str, parameters: dict[str, Any], *expected: Any) -> Row:
    body = {"model": "scripted", "prompt": "hi", "max_tokens": 1} | parameters
    return name, COMPLETION, json.dumps(body).encode(), _expected(expected)


def embed(name: str, parameters: dict[str, Any], *expected: Any) -> Row:
    body = {"model": "scripted-embedding", "input": "hi"} | parameters
    return name, EMBED, json.dumps(body).encode(), _expected(expected)


def image(name: str, parameters: bytes | dict[str, Any], *expected: Any) -> Row:
    """An image request with more parameters; as bytes where no JSON encoder would write them."""
    basic = {"model": "scripted-image", "prompt": "hi", "size": "64x64"}
    if isinstance(parameters, dict):
        return name, IMAGES, json.dumps(basic | parameters).encode(), _expected(expected)
    body = json.dumps(basic).encode().replace(b"}", b"," + parameters + b"}")
    return name, IMAGES, body, _expected(expected)


def raw(name: str, body: bytes, expected: Expected = NOT_JSON) -> Row:
    return name, CHAT, body, expected


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | function}]}


def image_part(url: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": url}}]


def calls(*ids: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    made = [{"id": i, "type": "function", "function": function} for i in ids]
    return {"role": "assistant", "tool_calls": made}


def tool_result(call_id: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "x"}


def _expected(expected: tuple[Any, ...]) -> Expected:
    return OK if not expected else wrong(*expected)


BOMB = {"type": "object", "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 10}
        for i in range(40)}, "properties": {"x": {"$ref": "#/$defs/d0"}}}  # fmt: skip
OPTIONAL = ["tools", "tool_choice", "response_format", "parallel_tool_calls", "functions",
            "function_call", "stream_options", "structured_outputs", "metadata"]  # fmt: skip
# Parameters of clients that write all messages with one type.
BLANK = {"name": None, "tool_calls": None, "tool_call_id": None, "function_call": None,
         "refusal": None, "reasoning_content": None, "audio": None}  # fmt: skip
CACHED = {"cache_control": {"type": "ephemeral"}}
# A message as a server with many additions sends it.
ANSWERED = {"role": "assistant", "content": "hi", "refusal": None, "annotations": [],
            "audio": None, "function_call": None, "tool_calls": [], "reasoning": None,
            "reasoning_content": None, "provider_specific_fields": {}, "thinking_blocks": None,
            "reasoning_details": [{"type": "reasoning.text", "text": "x"}]}  # fmt: skip

SYNTAX = [
    raw("an empty body", b""),
    raw("an array", b"[]"),
    raw("null", b"null"),
    raw("a string", b'"x"'),
    raw("a number", b"5"),
    raw("two documents", HI + b"}{}"),
    raw("a trailing comma", HI + b",}"),
    raw("a comment", HI + b"/**/}"),
    raw("a line comment", HI + b"}//x"),
    raw("single quotes", HI.replace(b'"', b"'") + b"}"),
    raw("a missing closing brace", HI),
    raw("a byte order mark", b"\xef\xbb\xbf" + HI + b"}"),
    raw("UTF-16", (HI + b"}").decode().encode("utf-16")),
    raw("UTF-32", (HI + b"}").decode().encode("utf-32")),
    raw("100,000 open arrays", b"[" * 100_000),
    raw("100,000 nested arrays", HI + b',"stop":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    raw("100,000 nested objects", HI + b',"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    chat("100,000 nested objects in a schema", b'"tools":[{"type":"function","function":{"name":'
         b'"f","parameters":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}}]", None, None),
    chat("NaN", b'"temperature":NaN', None, None),
    chat("Infinity", b'"temperature":Infinity', None, None),
    chat("minus Infinity", b'"temperature":-Infinity', None, None),
    chat("a leading zero", b'"n":01', None, None),
    chat("a plus sign", b'"n":+1', None, None),
    chat("a hexadecimal number", b'"n":0x1', None, None),
    chat("a raw tab in a string", b'"user":"a\tb"', None, None),
    chat("a raw line break in a string", b'"user":"a\nb"', None, None),
    chat("a raw zero byte in a string", b'"user":"a\x00b"', None, None),
    chat("an escaped lone surrogate", b'"user":"\\ud800"', None, "user"),
    chat("an escaped lone surrogate in a schema", b'"tools":[{"type":"function","function":{"name":'
         b'"f","parameters":{"a":"\\udc00"}}}]', None, "tools[0].function.parameters.a"),
    chat("a surrogate in raw bytes", b'"user":"\xed\xa0\x80"', None, "user"),
    chat("an overlong encoding", b'"user":"\xc0\xaf"', None, "user"),
    chat("invalid UTF-8", b'"user":"\xff"', None, "user"),
    chat("invalid UTF-8 in a schema", b'"tools":[{"type":"function","function":{"name":'
         b'"f","parameters":{"a":"\xff"}}}]', None, "tools[0].function.parameters.a"),
    chat("invalid UTF-8 in an unsupported parameter", b'"prediction":"\xff"', None, "prediction"),
    chat("an escaped pair of surrogates", b'"user":"\\ud83d\\ude00"'),
]  # fmt: skip
NUMBERS = [
    chat("1e999", b'"temperature":1e999', VALUE, "temperature"),
    chat("10**308", b'"temperature":1' + b"0" * 308, "decimal_above_max_value", "temperature"),
    chat("10**400", b'"temperature":1' + b"0" * 400, VALUE, "temperature"),
    chat("10**400 as an integer", b'"seed":1' + b"0" * 400, "integer_above_max_value", "seed"),
    chat("5,000 digits", b'"seed":' + b"9" * 5000, VALUE, "seed"),
    chat("5,000 digits behind the point", b'"temperature":0.' + b"1" * 5000),
    chat("5,000 digits of an unsupported parameter", b'"web_search_options":' + b"9" * 5000,
         "unsupported_parameter", "web_search_options"),
    chat("minus zero", b'"temperature":-0'),
    chat("minus zero as a count", b'"n":-0', "integer_below_min_value", "n"),
    chat("a boolean as an integer", {"n": True}, TYPE, "n"),
    chat("a boolean as a number", {"temperature": True}, TYPE, "temperature"),
    chat("an integer as a boolean", {"logprobs": 1}, TYPE, "logprobs"),
    chat("a string as a number", {"temperature": "0.5"}, TYPE, "temperature"),
    chat("1.5 as an integer", {"max_tokens": 1.5}, TYPE, "max_tokens"),
    chat("a string as a boolean", {"stream": "true"}, TYPE, "stream"),
    chat("max_tokens of 2**31", {"max_tokens": 2**31}, "context_length_exceeded", "messages"),
    chat("max_tokens of 2**63", {"max_tokens": 2**63}, "integer_above_max_value", "max_tokens"),
    chat("max_tokens of -1", {"max_tokens": -1}, "integer_below_min_value", "max_tokens"),
    chat("the largest int64 as seed", {"seed": 2**63 - 1}),
    chat("a seed above int64", {"seed": 2**63}, "integer_above_max_value", "seed"),
    chat("a seed below int64", {"seed": -(2**63) - 1}, "integer_below_min_value", "seed"),
    chat("129 choices", {"n": 129}, "integer_above_max_value", "n"),
    chat("zero choices", {"n": 0}, "integer_below_min_value", "n"),
]  # fmt: skip
PARAMETERS = [
    chat("null for messages", {"messages": None}, TYPE, "messages"),
    chat("null for model", {"model": None}, TYPE, "model"),
    *(chat(f"null for {name}", {name: None}) for name in OPTIONAL),
    embed("null for input", {"input": None}, TYPE, "input"),
    embed("null for dimensions", {"dimensions": None}),
    embed("null for encoding_format", {"encoding_format": None}),
    embed("null for the model of an embedding", {"model": None}),
    image("null for every optional parameter of an image", {"n": None, "quality": None,
          "response_format": None, "style": None, "background": None, "user": None}),
    chat("empty lists and objects", {"tools": [], "functions": [], "stop": [], "logit_bias": {},
         "metadata": {}, "stream_options": {}, "structured_outputs": {}, "stop_token_ids": [],
         "bad_words": [], "vllm_xargs": {}, "chat_template_kwargs": {}, "modalities": []}),
    chat("an empty object with white space", b'"vllm_xargs":{ }'),
    chat("no tools, and a choice of none of them", {"tools": [], "tool_choice": "auto",
         "parallel_tool_calls": True}),
    chat("no tools, and a call is forced", {"tools": [], "tool_choice": "required"}, None,
         "tool_choice"),
    chat("an empty object that asks for a search", {"web_search_options": {}},
         "unsupported_parameter", "web_search_options"),
    completion("null for model of a completion", {"model": None}, TYPE, "model"),
    chat("a known parameter twice, each valid", b'"n":2,"n":1'),
    chat("a known parameter twice, first invalid", b'"n":999,"n":1', "integer_above_max_value",
         "n"),
    chat("a known parameter twice, last invalid", b'"n":1,"n":999', "integer_above_max_value",
         "n"),
    chat("an unknown parameter twice", b'"foo":1,"foo":2', UNKNOWN, "foo"),
    chat("a tag twice", b'"response_format":{"type":"text","type":"json_object"}', VALUE,
         "response_format.type"),
    chat("an empty key", {"": 1}, UNKNOWN, ""),
    chat("a key of 1 MiB", {"k" * MEBIBYTE: 1}, UNKNOWN, "k" * 64 + "..."),
    chat("a key with line breaks", {"a\r\nb: c": 1}, UNKNOWN, "a\r\nb: c"),
    chat("__proto__", {"__proto__": {}}, UNKNOWN, "__proto__"),
    chat("stream_options without stream", {"stream_options": {"include_usage": True}}, None,
         "stream_options"),
    chat("four stop strings", {"stop": ["a", "b", "c", "d"]}),
    chat("five stop strings", {"stop": ["a", "b", "c", "d", "e"]}, LONG_LIST, "stop"),
    chat("an empty stop string", {"stop": ""}, VALUE, "stop"),
    chat("nested stop strings", {"stop": [["a"]]}, TYPE, "stop[0]"),
    chat("logit_bias of 1e3", {"logit_bias": {"1e3": 1}}, None, "logit_bias"),
    chat("logit_bias of -1", {"logit_bias": {"-1": 1}}, None, "logit_bias"),
    chat("logit_bias of digits that are not ASCII", {"logit_bias": {"\u0663": 1}}, None,
         "logit_bias"),
    chat("logit_bias of 1 MiB of digits", {"logit_bias": {"9" * MEBIBYTE: 1}}, None, "logit_bias"),
    chat("logit_bias that is an array", {"logit_bias": []}, TYPE, "logit_bias"),
]  # fmt: skip
CONVERSATIONS = [
    turns("an unknown role", {"role": "root", "content": "x"}, VALUE, "messages[0].role"),
    turns("a role with a line break", {"role": "user\n", "content": "x"}, VALUE,
         "messages[0].role"),
    turns("no role", {"content": "x"}, MISSING, "messages[0].role"),
    turns("no content", {"role": "user"}, MISSING, "messages[0].content"),
    turns("content of null", {"role": "user", "content": None}, None, "messages.[0].content"),
    turns("members of other messages, null", USER | BLANK),
    turns("a tool call of a user", USER | {"tool_calls": calls("a")["tool_calls"]}, UNKNOWN,
          "messages[0].tool_calls"),
    turns("a message as a server sent it", [USER, ANSWERED, USER]),
    turns("a message that ended within its reasoning", [USER, {"role": "assistant",
          "content": None, "reasoning_content": "so", "tool_calls": []}, USER]),
    turns("a message of empty reasoning", [USER, {"role": "assistant", "content": None,
          "reasoning_content": ""}], None, "messages.[1].content"),
    turns("cache advice on messages", [USER | CACHED, ANSWERED | CACHED, USER]),
    part("cache advice on a part", [{"type": "text", "text": "x"} | CACHED]),
    turns("2,049 messages", [USER] * 2049, LONG_LIST, "messages"),
    turns("a null message", [None], TYPE, "messages[0]"),
    part("an unknown part", [{"type": "video", "video": {}}], VALUE, "messages[0].content[0].type"),
    part("no parts", [], "empty_array", "messages[0].content"),
    part("an empty text", [{"type": "text", "text": ""}]),
    part("an HTTP URL as an image", image_part("http://127.0.0.1:1/x.png"), "unsupported_value",
         "messages[0].content[0].image_url.url"),
    part("a file URL as an image", image_part("file:///etc/passwd"), "unsupported_value",
         "messages[0].content[0].image_url.url"),
    part("an FTP URL as an image", image_part("ftp://x/y"), "unsupported_value",
         "messages[0].content[0].image_url.url"),
    part("damaged base64", image_part("data:image/png;base64,A==="), VALUE,
         "messages[0].content[0].image_url.url"),
    part("base64 with a line break", image_part("data:image/png;base64,AA\n=="), VALUE,
         "messages[0].content[0].image_url.url"),
    part("an HTML page as an image", image_part("data:text/html;base64,AA=="), VALUE,
         "messages[0].content[0].image_url.url"),
    turns("a call id with CRLF and NUL", [USER, calls("a\r\nx: y\0"), tool_result("a\r\nx: y\0")]),
    turns("a result for another call id", [USER, calls("a\r\n"), tool_result("a")], None,
         "messages.[2].role"),
    turns("a call id that is null", [USER, calls("a"), tool_result(None)], TYPE,
         "messages[2].tool_call_id"),
    turns("one id for two calls", [USER, calls("a", "a"), tool_result("a")]),
    turns("two results for one call", [USER, calls("a"), tool_result("a"), tool_result("a")]),
    chat("CRLF and NUL in user", {"user": "a\r\nset-cookie: b\0"}),
    chat("CRLF in model", {"model": "a\r\nset-cookie: b"}, "model_not_found", None),
    chat("a model name of 1 MiB", {"model": "m" * MEBIBYTE}, "model_not_found", None),
    chat("messages as damaged JSON", {"messages": '[{"role":'}, VALUE, "messages"),
    chat("messages as deep JSON", {"messages": "[" * 100_000}, VALUE, "messages"),
]  # fmt: skip
# The edge passes these schemas on unexpanded and fetches no URL in them. Whether a grammar can
# express them is the engine's check.
SCHEMAS = [
    chat("cache advice on a tool", {"tools": [tool(**CACHED)["tools"][0] | CACHED]}),
    chat("129 tools", {"tools": tool()["tools"] * 129}, LONG_LIST, "tools"),
    chat("two tools of one name", {"tools": tool()["tools"] * 2}),
    chat("a pattern that backtracks", tool(parameters={"type": "object", "properties":
         {"x": {"type": "string", "pattern": "^(a+)+$"}}})),
    chat("an invalid pattern", tool(parameters={"type": "object", "properties":
         {"x": {"type": "string", "pattern": "("}}})),
    chat("a schema that refers to itself", tool(parameters={"type": "object", "properties":
         {"x": {"$ref": "#"}}})),
    chat("a schema on a server", tool(parameters={"type": "object", "properties":
         {"x": {"$ref": "http://127.0.0.1:1/schema"}}})),
    chat("a bomb of definitions", tool(parameters=BOMB)),
    chat("an enum of 10,000", tool(parameters={"type": "object", "properties":
         {"x": {"enum": list(range(10_000))}}})),
    chat("an enum too large", tool(parameters={"type": "object", "properties":
         {"x": {"enum": [f"value {i}" for i in range(10_000)]}}}), LONG_TEXT,
         "tools[0].function.parameters"),
    chat("parameters of null", tool(parameters=None)),
    chat("a tool name with a line break", tool(name="f\n"), VALUE, "tools[0].function.name"),
    chat("a strict schema left open", tool(strict=True, parameters={"type": "object"}),
         "invalid_function_parameters", "tools[0].function.parameters"),
    chat("a strict bomb of definitions", tool(strict=True, parameters=BOMB),
         "invalid_function_parameters", "tools[0].function.parameters"),
    chat("an unknown response_format type", {"response_format": {"type": "xml"}}, VALUE,
         "response_format.type"),
    chat("a response_format without a schema", {"response_format": {"type": "json_schema",
         "json_schema": {"name": "x"}}}, MISSING, "response_format.json_schema.schema"),
]  # fmt: skip
INPUTS = [
    completion("a mixed prompt", {"prompt": ["a", 1]}, TYPE, "prompt"),
    completion("a prompt of tokens and lists", {"prompt": [1, [1]]}, TYPE, "prompt"),
    completion("a prompt nested too deep", {"prompt": [[[1]]]}, TYPE, "prompt[0][0]"),
    completion("a negative token", {"prompt": [-1]}, "integer_below_min_value", "prompt[0]"),
    completion("a token beyond the vocabulary", {"prompt": [1, 50_000]}, VALUE, "prompt[1]"),
    completion("a token beyond the vocabulary in a batch", {"prompt": [[1], [1, 50_000]]}, VALUE,
               "prompt[1][1]"),
    completion("a token beyond the vocabulary in a list of one", {"prompt": [[50_000]]}, VALUE,
               "prompt[0][0]"),
    completion("a long prompt among others", {"prompt": ["hi", "x " * 5000]}, None, "prompt[1]"),
    completion("a long prompt alone", {"prompt": "x " * 5000}, None, None),
    completion("logprobs of a batch beyond the range", {"prompt": ["a", "b"],
               "prompt_logprobs": 21}, "integer_above_max_value", "prompt_logprobs"),
    embed("an empty input among others", {"input": ["a"] * 7 + [""]}, None, "input[7]"),
    embed("an input of an unknown token in a list of one", {"input": [[1, 50_000]]}, VALUE,
          "input[0][1]"),
    embed("an input of an unknown token among others", {"input": [[1], [50_000]]}, VALUE,
          "input[1][0]"),
    embed("an unknown token", {"input": [1, 50_000]}, VALUE, "input[1]"),
    embed("a long input among others", {"input": ["hi", "x " * 5000, "hi"]}, None, "input[1]"),
    completion("a boolean token", {"prompt": [True]}, TYPE, "prompt[0]"),
    completion("a prompt that is an object", {"prompt": {}}, TYPE, "prompt"),
    embed("a mixed input", {"input": ["a", 1]}, None, "input"),
    embed("an input nested too deep", {"input": [[[1]]]}, TYPE, "input[0][0]"),
    embed("a token beyond 32 bits", {"input": [2**32]}, "integer_above_max_value",
          "input[0]"),
    embed("2,049 inputs", {"input": ["x"] * 2049}, LONG_LIST, "input"),
    embed("an encoding in upper case", {"encoding_format": "FLOAT"}, VALUE, "encoding_format"),
]  # fmt: skip
SIZE = ("invalid_size", "size")
IMAGE_ROWS = [
    image("an empty size", {"size": ""}, *SIZE),
    image("one side", {"size": "64"}, *SIZE),
    image("three sides", {"size": "64x64x64"}, *SIZE),
    image("two stars", {"size": "64**64"}, *SIZE),
    image("a side of zero", {"size": "0x64"}, *SIZE),
    image("a negative side", {"size": "-64x64"}, *SIZE),
    image("a side with a sign", {"size": "+64x64"}, *SIZE),
    image("a side with a point", {"size": "64.0x64"}, *SIZE),
    image("a side with an exponent", {"size": "1e2x64"}, *SIZE),
    image("a side in hexadecimal", {"size": "0x40x64"}, *SIZE),
    image("a side with leading zeros", {"size": "0064x64"}, *SIZE),
    image("a side with separators", {"size": "1_024x64"}, *SIZE),
    image("sides with spaces", {"size": "64 x 64"}, *SIZE),
    image("sides with a line break", {"size": "64x64\n"}, *SIZE),
    image("Arabic digits", {"size": "\u0666\u0664x64"}, *SIZE),
    image("wide digits", {"size": "\uff16\uff14x64"}, *SIZE),
    image("superscript digits", {"size": "64\u00b2x64"}, *SIZE),
    image("a sign of multiplication", {"size": "64\u00d764"}, *SIZE),
    image("gigantic sides", {"size": "99999x99999"}, *SIZE),
    image("sides of 5,000 digits", {"size": "9" * 5000 + "x" + "9" * 5000}, *SIZE),
    image("a side of 1 MiB", {"size": "6" * MEBIBYTE + "x64"}, *SIZE),
    image("sides as an array", {"size": [64, 64]}, TYPE, "size"),
    image("a side as a number", {"size": 64}, TYPE, "size"),
    image("the smallest size", {"size": "64*64"}),
    image("one pixel less", {"size": "63*64"}, *SIZE),
    image("the longest side", {"size": "2048x64"}),
    image("one pixel more", {"size": "2049x64"}, *SIZE),
    image("too many pixels", {"size": "2048x1172"}, *SIZE),
    image("a size given twice, each valid", b'"size":"128x64"'),
    image("null for prompt", {"prompt": None}, TYPE, "prompt"),
    image("prompts as an array", {"prompt": ["hi"]}, TYPE, "prompt"),
    image("an empty prompt", {"prompt": ""}, VALUE, "prompt"),
    image("a prompt of 1 MiB", {"prompt": "x" * MEBIBYTE}, LONG_TEXT, "prompt"),
    image("a prompt with NUL and line breaks", {"prompt": "a\0b\r\nc\u2028"}),
    image("a lone surrogate in a prompt", b'"prompt":"\\ud800"', None, "prompt"),
    image("ten images", {"n": 10}),
    image("eleven images", {"n": 11}, "integer_above_max_value", "n"),
    image("zero images", {"n": 0}, "integer_below_min_value", "n"),
    image("guidance of 1e999", b'"guidance_scale":1e999', VALUE, "guidance_scale"),
    image("guidance of NaN", b'"guidance_scale":NaN', None, None),
    image("an image seed above int64", {"seed": 2**63}, "integer_above_max_value", "seed"),
    image("the largest image seed", {"seed": 2**63 - 1, "n": 2}),
    image("the GIF format", {"output_format": "gif"}, "unsupported_value", "output_format"),
    image("the SVG format", {"output_format": "svg"}, "unsupported_value", "output_format"),
    image("the svg parameter", {"svg": {"model": "x"}}, "unsupported_parameter", "svg"),
    image("a transparent background", {"background": "transparent"}, "unsupported_parameter",
          "background"),
    image("an input image", {"image": "data:image/png;base64,AAAA"}, UNKNOWN, "image"),
]  # fmt: skip
ROWS = [*IMAGE_ROWS, *SYNTAX, *NUMBERS, *PARAMETERS, *CONVERSATIONS, *SCHEMAS, *INPUTS]
NOT_FOUND = {"CRLF in model", "a model name of 1 MiB"}


@pytest.fixture
def transport() -> str:
    """These requests fail before any call or do not depend on the transport."""
    return "session"


@pytest.fixture
async def stack(start_stack: StartStack) -> Stack:
    return await start_stack(TEXT, EMBEDDING, IMAGE)


def test_there_are_at_least_60_rows_with_unique_names() -> None:
    names = [row[0] for row in ROWS]
    assert len(names) >= 60
    assert sorted(set(names)) == sorted(names)


async def send(
    stack: Stack, path: str, body: bytes, **arguments: Any
) -> tuple[Expected, Mapping[str, str]]:
    arguments.setdefault("headers", JSON_TYPE)
    async with stack.http.post(path, data=io.BytesIO(body), **arguments) as response:
        document = await response.json()
        headers = response.headers
    if response.status == 200:
        return OK, headers
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 2000
    return (response.status, error["code"], error["param"]), headers


@pytest.mark.parametrize(
    "rows",
    [SYNTAX, NUMBERS, PARAMETERS, CONVERSATIONS, SCHEMAS, INPUTS, IMAGE_ROWS],
    ids=["syntax", "numbers", "parameters", "conversations", "schemas", "inputs", "images"],
)
async def test_each_row_gets_its_status_code_and_param(stack: Stack, rows: list[Row]) -> None:
    failures = []
    for name, path, body, expected in rows:
        if name in NOT_FOUND:
            expected = (404, *expected[1:])
        seen, headers = await send(stack, path, body)
        assert "set-cookie" not in headers
        if seen != expected:
            failures.append((name, seen, expected))
    assert not failures
    registry = stack.server.registry
    await eventually(lambda: not registry.running_calls)
    assert (await send(stack, CHAT, HI + b"}"))[0] == OK


async def test_last_value_of_a_duplicate_parameter_counts(stack: Stack) -> None:
    for parameters, choices in ((b'"n":3,"n":2', 2), (b'"n":2,"n":3', 3)):
        body = HI + b"," + parameters + b"}"
        async with stack.http.post(CHAT, data=body, headers=JSON_TYPE) as response:
            assert len((await response.json())["choices"]) == choices


HEADERS: list[tuple[str, dict[str, str], Expected]] = [
    ("no content type", {"content-type": ""}, wrong("unsupported_content_type", None)),
    ("plain text", {"content-type": "text/plain"}, wrong("unsupported_content_type", None)),
    ("a form", {"content-type": "multipart/form-data; boundary=x"},
     wrong("unsupported_content_type", None)),
    ("almost JSON", {"content-type": "application/jsonp"},
     wrong("unsupported_content_type", None)),
    ("a charset", {"content-type": "application/json; charset=utf-8"}, OK),
    ("a charset in quotes", {"content-type": 'application/json; charset="UTF-8"'}, OK),
    ("another charset", {"content-type": "application/json; charset=latin-1"}, OK),
    ("capital letters", {"content-type": "Application/JSON"}, OK),
    ("a damaged parameter", {"content-type": "application/json; charset"}, OK),
    ("a compressed body", JSON_TYPE | {"content-encoding": "gzip"},
     (415, "unsupported_content_encoding", None)),
    ("an unknown encoding", JSON_TYPE | {"content-encoding": "x"},
     (415, "unsupported_content_encoding", None)),
    ("a timeout of zero", JSON_TYPE | {"x-request-timeout": "0"},
     wrong(VALUE, "x-request-timeout")),
    ("a timeout of nan", JSON_TYPE | {"x-request-timeout": "nan"},
     wrong(VALUE, "x-request-timeout")),
    ("an accept header without JSON", JSON_TYPE | {"accept": "image/png"}, OK),
    ("an invalid traceparent", JSON_TYPE | {"traceparent": "00-zz"}, OK),
]  # fmt: skip


async def test_each_header_row_gets_its_status_code_and_param(stack: Stack) -> None:
    seen = []
    for name, headers, _ in HEADERS:
        # The body is the same JSON each time: only the headers decide.
        skip = ["content-type"] if not headers["content-type"] else []
        sent = {key: value for key, value in headers.items() if value}
        result, _ = await send(stack, CHAT, HI + b"}", headers=sent, skip_auto_headers=skip)
        seen.append((name, result))
    assert seen == [(name, expected) for name, _, expected in HEADERS]
    packed = gzip.compress(HI + b"}")
    assert (await send(stack, CHAT, packed))[0] == NOT_JSON


@pytest.mark.parametrize("given", ["a b", "x" * 129, "\u0663", "a\u00e9", "a;b", '"'])
async def test_invalid_request_id_is_replaced(stack: Stack, given: str) -> None:
    headers = JSON_TYPE | {"x-request-id": given}
    result, answered = await send(stack, CHAT, HI + b"}", headers=headers)
    assert result == OK
    assert answered["x-request-id"].startswith("req_")


async def test_request_id_cannot_inject_response_headers(stack: Stack) -> None:
    """The requests use a bare socket, because no client library sends such headers."""
    for nasty in (b"a\r\n b", b"a\rset-cookie: b", b"a\x00b", b"a\xffb"):
        port = int(stack.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = HI + b"}"
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-type: application/json\r\nx-request-id: " + nasty + b"\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        async with asyncio.timeout(10):
            answered = await reader.read()
        writer.close()
        head = answered.partition(b"\r\n\r\n")[0]
        assert head.split(b" ")[1] in (b"200", b"400")
        assert b"set-cookie" not in head
        assert b"x-request-id: req_" in head
