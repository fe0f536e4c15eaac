"""REST and gRPC refuse the same faults, with the same code, type and param.

Each row is sent over gRPC and, plain and streamed, over REST. The gRPC status is also converted as
the edge converts it; the result must be the REST error, message included.

The table has only faults that both faces can express. Faults of JSON (types, unknown parameters,
syntax) are in test_nasties.py. Three rules are OpenAI's and hold over REST only: at most 4 stop
strings (16 over gRPC), legacy logprobs up to 5 (20 over gRPC), and closed schemas with `strict`.
`output_compression` is missing because it has another name over gRPC, `quality`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import msgspec
import pytest
from google.protobuf import text_format
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from edge.app import serving
from edge.config import EdgeConfig
from edge.openai.errors.rpc_status import from_rpc_status
from inference.config import ServerConfig
from inference.server import InferenceServer
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest, TokenIds
from isthmus.v1.image_pb2 import GenerateImageRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.tokenize_pb2 import TokenizeRequest
from keys import create_key
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually

Status = grpc.StatusCode
INVALID = "invalid_request_error"
SERVER = "server_error"
CHAT, COMPLETION, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
DRAW = "/v1/images/generations"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
DEFAULTS: dict[str, dict[str, Any]] = {
    CHAT: {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETION: {"model": "scripted", "prompt": "hi"},
    EMBED: {"model": "scripted-embedding", "input": "hi"},
    DRAW: {"model": "scripted-image", "prompt": "hi", "size": "64x64"},
    TOKENIZE: {"model": "scripted"},
    DETOKENIZE: {"model": "scripted", "tokens": [1]},
}
# Their answers are documents, never streams.
PLAIN = (EMBED, TOKENIZE, DETOKENIZE)
USER = 'messages { role: ROLE_USER parts { text: "hi" } }'
CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
ASKED = {"role": "user", "content": "hi"}
CALLED = {"role": "assistant", "tool_calls": CALLS}
ANSWER = {"role": "tool", "tool_call_id": "a", "content": "x"}
CALLED_PROTO = 'messages { role: ROLE_ASSISTANT tool_calls { id: "a" name: "f" arguments: "{}" } }'
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@dataclass(frozen=True)
class Fault:
    """A fault on both faces.

    Attributes:
        name: The id of the test case.
        path: The REST endpoint.
        parameters: Parameters that are added to the endpoint's smallest valid body.
        request: The same request over gRPC.
        code, param, type, status: Of the REST error.
        grpc_status, reason: Of the gRPC error; no reason means the code, or else the type.
        own_words: True if the messages differ, as a number or parameter exists on one face only.
    """

    name: str
    path: str
    parameters: dict[str, Any]
    request: GenerateRequest | EmbedRequest | GenerateImageRequest | TokenizeRequest
    code: str | None
    param: str | None
    type: str = INVALID
    status: int = 400
    grpc_status: grpc.StatusCode = Status.INVALID_ARGUMENT
    reason: str = ""
    own_words: bool = False


def chat(
    name: str, parameters: dict[str, Any], proto: str, *rest: Any, input: str = USER, **more: Any
) -> Fault:
    """A fault of a chat; `proto` is the gRPC request without its input, in text format."""
    request = text_format.Parse(f'model: "scripted" chat {{ {input} }}', GenerateRequest())
    request.MergeFrom(text_format.Parse(proto, GenerateRequest()))
    return Fault(name, CHAT, parameters, request, *rest, **more)


def text(name: str, parameters: dict[str, Any], proto: str, *rest: Any, **more: Any) -> Fault:
    """A fault of a completion."""
    request = GenerateRequest(model="scripted", text="hi")
    request.MergeFrom(text_format.Parse(proto, GenerateRequest()))
    return Fault(name, COMPLETION, parameters, request, *rest, **more)


def embed(name: str, parameters: dict[str, Any], proto: str, *rest: Any, **more: Any) -> Fault:
    """A fault of an embedding."""
    request = EmbedRequest(model="scripted-embedding")
    request.MergeFrom(text_format.Parse(proto, EmbedRequest()))
    return Fault(name, EMBED, parameters, request, *rest, **more)


def tokens(
    name: str, path: str, parameters: dict[str, Any], proto: str, *rest: Any, **more: Any
) -> Fault:
    """A fault of a tokenization or detokenization; `proto` is the whole request but its model."""
    request = TokenizeRequest(model="scripted")
    request.MergeFrom(text_format.Parse(proto, TokenizeRequest()))
    return Fault(name, path, parameters, request, *rest, **more)


def draw(name: str, parameters: dict[str, Any], proto: str, *rest: Any, **more: Any) -> Fault:
    """A fault of an image request."""
    request = GenerateImageRequest(model="scripted-image", prompt="hi", width=64, height=64)
    request.MergeFrom(text_format.Parse(proto, GenerateImageRequest()))
    return Fault(name, DRAW, parameters, request, *rest, **more)


def said(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


def tools(count: int = 1, **function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | function}] * count}


def response_format(schema: Any) -> dict[str, Any]:
    wrapped = {"name": "x", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}


ABOVE, BELOW = "decimal_above_max_value", "decimal_below_min_value"
INT_ABOVE, INT_BELOW = "integer_above_max_value", "integer_below_min_value"
LONG_LIST, LONG_TEXT = "array_above_max_length", "string_above_max_length"
SCHEMA = "response_format.json_schema.schema"
LARGE_SCHEMA = json.dumps({"x": "y" * 65_536})
NOT_CAPABLE = {"status": 404, "grpc_status": Status.FAILED_PRECONDITION}

SAMPLING = [
    chat("temperature above", {"temperature": 2.1}, "sampling { temperature: 2.1 }", ABOVE,
         "temperature"),
    chat("temperature below", {"temperature": -0.1}, "sampling { temperature: -0.1 }", BELOW,
         "temperature"),
    chat("top_p above", {"top_p": 1.5}, "sampling { top_p: 1.5 }", ABOVE, "top_p"),
    chat("top_p below", {"top_p": -1}, "sampling { top_p: -1 }", BELOW, "top_p"),
    chat("min_p above", {"min_p": 2}, "sampling { min_p: 2 }", ABOVE, "min_p"),
    chat("min_p below", {"min_p": -1}, "sampling { min_p: -1 }", BELOW, "min_p"),
    chat("presence_penalty above", {"presence_penalty": 3}, "sampling { presence_penalty: 3 }",
         ABOVE, "presence_penalty"),
    chat("presence_penalty below", {"presence_penalty": -3}, "sampling { presence_penalty: -3 }",
         BELOW, "presence_penalty"),
    chat("frequency_penalty above", {"frequency_penalty": 3}, "sampling { frequency_penalty: 3 }",
         ABOVE, "frequency_penalty"),
    chat("frequency_penalty below", {"frequency_penalty": -3},
         "sampling { frequency_penalty: -3 }", BELOW, "frequency_penalty"),
    chat("repetition_penalty zero", {"repetition_penalty": 0},
         "sampling { repetition_penalty: 0 }", BELOW, "repetition_penalty"),
    chat("repetition_penalty below", {"repetition_penalty": -1},
         "sampling { repetition_penalty: -1 }", BELOW, "repetition_penalty"),
    chat("top_k below", {"top_k": -2}, "sampling { top_k: -2 }", INT_BELOW, "top_k"),
    chat("logit_bias above", {"logit_bias": {"1": 101}},
         "sampling { logit_bias { key: 1 value: 101 } }", ABOVE, "logit_bias"),
    chat("logit_bias below", {"logit_bias": {"1": -101}},
         "sampling { logit_bias { key: 1 value: -101 } }", BELOW, "logit_bias"),
    chat("logit_bias of too many tokens", {"logit_bias": {str(i): 1 for i in range(1025)}},
         "sampling {" + "".join(f"logit_bias {{ key: {i} }} " for i in range(1025)) + "}",
         "object_above_max_properties", "logit_bias"),
    chat("logit_bias beyond the vocabulary", {"logit_bias": {"50000": 1}},
         "sampling { logit_bias { key: 50000 value: 1 } }", None, "logit_bias"),
]  # fmt: skip
STOPPING = [
    chat("max_tokens zero", {"max_tokens": 0}, "stopping { max_tokens: 0 }", INT_BELOW,
         "max_tokens"),
    text("max_tokens zero without echo", {"max_tokens": 0}, "stopping { max_tokens: 0 }",
         INT_BELOW, "max_tokens"),
    chat("min_tokens above max_tokens", {"max_tokens": 2, "min_tokens": 3},
         "stopping { max_tokens: 2 min_tokens: 3 }", INT_ABOVE, "min_tokens"),
    chat("too many stop strings", {"stop": ["x"] * 17}, "stopping { " + 'strings: "x" ' * 17 + "}",
         LONG_LIST, "stop", own_words=True),
    chat("empty stop string", {"stop": [""]}, 'stopping { strings: "" }', "invalid_value", "stop"),
    chat("long stop string", {"stop": "x" * 1025},
         f'stopping {{ strings: "{"x" * 1025}" }}', LONG_TEXT, "stop"),
    chat("too many stop tokens", {"stop_token_ids": [1] * 1025},
         "stopping { " + "token_ids: 1 " * 1025 + "}", LONG_LIST, "stop_token_ids"),
    chat("stop token beyond the vocabulary", {"stop_token_ids": [50_000]},
         "stopping { token_ids: 50000 }", "invalid_value", "stop_token_ids[0]"),
]  # fmt: skip
OUTPUT = [
    chat("n zero", {"n": 0}, "output { n: 0 }", INT_BELOW, "n"),
    chat("n above", {"n": 129}, "output { n: 129 }", INT_ABOVE, "n"),
    chat("n far above", {"n": 4294967295}, "output { n: 4294967295 }", INT_ABOVE, "n"),
    text("best_of above", {"best_of": 21}, "output { best_of: 21 }", INT_ABOVE, "best_of"),
    text("best_of below n", {"n": 2, "best_of": 1}, "output { n: 2 best_of: 1 }", None, "best_of"),
    chat("top_logprobs above", {"logprobs": True, "top_logprobs": 21}, "output { logprobs: 21 }",
         INT_ABOVE, "top_logprobs"),
    text("logprobs above", {"logprobs": 21}, "output { logprobs: 21 }", INT_ABOVE, "logprobs",
         own_words=True),
    chat("truncation of a chat", {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens: 5",
         "unsupported_parameter", "truncate_prompt_tokens"),
    text("truncation to nothing", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: 0",
         INT_BELOW, "truncate_prompt_tokens"),
    text("blank bad word", {"bad_words": [" "]}, 'sampling { bad_words: " " }', "invalid_value",
         "bad_words"),
    text("suffix for a model without infilling", {"suffix": "x"}, 'suffix: "x"',
         "unsupported_parameter", "suffix"),
    chat("empty cache_salt", {"cache_salt": ""}, 'cache_salt: ""', "invalid_value", "cache_salt"),
    chat("long cache_salt", {"cache_salt": "x" * 257}, f'cache_salt: "{"x" * 257}"', LONG_TEXT,
         "cache_salt"),
]  # fmt: skip
CONSTRAINTS = [
    chat("schema is no object", response_format([1]), 'constraint { json_schema: "[1]" }',
         "invalid_type", SCHEMA),
    chat("schema too large", response_format(json.loads(LARGE_SCHEMA)),
         f"constraint {{ json_schema: '{LARGE_SCHEMA}' }}", LONG_TEXT, SCHEMA),
    chat("no choices", {"structured_outputs": {"choice": []}}, "constraint { choices {} }",
         "empty_array", "structured_outputs.choice"),
    chat("too many choices", {"structured_outputs": {"choice": ["x"] * 1025}},
         "constraint { choices { " + 'values: "x" ' * 1025 + "} }", LONG_LIST,
         "structured_outputs.choice"),
    chat("choices too large", {"structured_outputs": {"choice": ["x" * 65_537]}},
         f'constraint {{ choices {{ values: "{"x" * 65_537}" }} }}', LONG_TEXT,
         "structured_outputs.choice"),
    chat("regex without permission", {"structured_outputs": {"regex": "(a+)+$"}},
         'constraint { regex: "(a+)+$" }', "unsupported_parameter", "structured_outputs.regex"),
    chat("grammar without permission", {"structured_outputs": {"grammar": "root ::= root"}},
         'constraint { grammar: "root ::= root" }', "unsupported_parameter",
         "structured_outputs.grammar"),
    chat("JSON mode without json in a message", {"response_format": {"type": "json_object"}},
         "constraint { json_object: true }", None, "messages"),
]  # fmt: skip

CONVERSATION = [
    chat("no messages", {"messages": []}, "", "empty_array", "messages", input=""),
    chat("too many messages", said(*[ASKED] * 2049), "", LONG_LIST, "messages",
         input=USER * 2049),
    chat("unknown role", said({"role": "critic", "content": "x"}), "", "invalid_value",
         "messages[0].role", input='messages { role: 99 parts { text: "x" } }', own_words=True),
    chat("no parts", said({"role": "user", "content": []}), "", "empty_array",
         "messages[0].content", input="messages { role: ROLE_USER }"),
    chat("too many parts", said({"role": "user", "content": [{"type": "text", "text": ""}] * 1025}),
         "", LONG_LIST, "messages[0].content",
         input="messages { role: ROLE_USER " + 'parts { text: "" } ' * 1025 + "}"),
    chat("too many parts in all messages",
         said(*[{"role": "user", "content": [{"type": "text", "text": ""}] * 1000}] * 5), "",
         LONG_LIST, "messages",
         input=("messages { role: ROLE_USER " + 'parts { text: "" } ' * 1000 + "}") * 5),
    chat("too many tool calls in all messages",
         said(*[{"role": "assistant", "tool_calls": CALLS * 128}, ANSWER] * 33), "", LONG_LIST,
         "messages", input=("messages { role: ROLE_ASSISTANT " + 'tool_calls { id: "a" } ' * 128
         + '} messages { role: ROLE_TOOL tool_call_id: "a" parts { text: "x" } }') * 33),
    chat("long name in a message", said(ASKED | {"name": "x" * 257}), "", LONG_TEXT,
         "messages[0].name", input='messages { role: ROLE_USER parts { text: "hi" } '
         f'name: "{"x" * 257}" }}'),
    chat("long name of a tool call", said({"role": "assistant", "tool_calls": [CALLS[0]
         | {"function": {"name": "f" * 257, "arguments": "{}"}}]}, ANSWER), "", LONG_TEXT,
         "messages[0].tool_calls[0].function.name", input="messages { role: ROLE_ASSISTANT "
         f'tool_calls {{ id: "a" name: "{"f" * 257}" }} }}'
         'messages { role: ROLE_TOOL tool_call_id: "a" parts { text: "x" } }'),
    chat("unknown part", said({"role": "user", "content": [{"type": "video"}]}), "",
         "invalid_value", "messages[0].content[0].type",
         input="messages { role: ROLE_USER parts {} }", own_words=True),
    chat("refusal part in a user message", said({"role": "user", "content": [{"type": "refusal",
         "refusal": "x"}]}), "", "invalid_value", "messages[0].content[0].type",
         input='messages { role: ROLE_USER parts { refusal: "x" } }', own_words=True),
    chat("image for a text model", said({"role": "user", "content": [IMAGE_PART]}), "",
         "unsupported_value", "messages[0].content[0].type",
         input='messages { role: ROLE_USER parts { image { data: "x" mime_type: "image/png" } } }'),
    chat("audio for a text model", said({"role": "user", "content": [{"type": "input_audio",
         "input_audio": {"data": "", "format": "wav"}}]}), "", "unsupported_value",
         "messages[0].content[0].type",
         input="messages { role: ROLE_USER parts { audio {} } }", own_words=True),
    chat("image in a system message", said({"role": "system", "content": [IMAGE_PART]}), "",
         "invalid_value", "messages[0].content[0].type",
         input="messages { role: ROLE_SYSTEM parts { image {} } }", own_words=True),
    chat("empty image", said({"role": "user", "content": [{"type": "image_url", "image_url":
         {"url": "data:image/png;base64,"}}]}), "", "invalid_value",
         "messages[0].content[0].image_url.url", own_words=True,
         input='messages { role: ROLE_USER parts { image { mime_type: "image/png" } } }'),
    chat("image of an unsupported type", said({"role": "user", "content": [{"type": "image_url",
         "image_url": {"url": "data:image/tiff;base64,AA=="}}]}), "", "invalid_value",
         "messages[0].content[0].image_url.url", own_words=True,
         input='messages { role: ROLE_USER parts { image { data: "x" mime_type: "a/b" } } }'),
    chat("too many images", said({"role": "user", "content": [IMAGE_PART] * 17}), "",
         "invalid_value", "messages", input="messages { role: ROLE_USER "
         + 'parts { image { data: "x" mime_type: "image/png" } } ' * 17 + "}"),
    chat("tool result without an id", said(ASKED, CALLED, {"role": "tool", "content": "x"}), "",
         "missing_required_parameter", "messages[2].tool_call_id",
         input=USER + CALLED_PROTO + 'messages { role: ROLE_TOOL parts { text: "x" } }'),
    chat("result without a call",
         said(ASKED, {"role": "tool", "tool_call_id": "a", "content": "x"}), "", None,
         "messages.[1].role", input=USER
         + 'messages { role: ROLE_TOOL tool_call_id: "a" parts { text: "x" } }'),
    chat("tool result of another call",
         said(ASKED, CALLED, {"role": "tool", "tool_call_id": "b", "content": "x"}), "",
         None, "messages.[2].role", input=USER + CALLED_PROTO
         + 'messages { role: ROLE_TOOL tool_call_id: "b" parts { text: "x" } }'),
    chat("tool call without a result", said(ASKED, CALLED, ASKED), "", None, "messages",
         input=USER + CALLED_PROTO + USER),
    chat("last tool call without a result", said(ASKED, CALLED), "", None, "messages",
         input=USER + CALLED_PROTO),
    chat("reasoning_effort", {"reasoning_effort": "huge"}, 'chat { reasoning_effort: "huge" }',
         "invalid_value", "reasoning_effort"),
    chat("template arguments are no object", {"chat_template_kwargs": [1]},
         'chat { template_arguments_json: "[1]" }', "invalid_type", "chat_template_kwargs"),
    chat("template arguments too large", {"chat_template_kwargs": json.loads(LARGE_SCHEMA)},
         f"chat {{ template_arguments_json: '{LARGE_SCHEMA}' }}", LONG_TEXT,
         "chat_template_kwargs"),
]  # fmt: skip
TOOLS = [
    chat("too many tools", tools(129), "", LONG_LIST, "tools",
         input=USER + 'tools { name: "f" } ' * 129),
    chat("invalid tool name", tools(name="a b"), "", "invalid_value", "tools[0].function.name",
         input=USER + 'tools { name: "a b" }'),
    chat("empty tool name", tools(name=""), "", "invalid_value", "tools[0].function.name",
         input=USER + "tools {}"),
    chat("long tool name", tools(name="f" * 65), "", LONG_TEXT, "tools[0].function.name",
         input=USER + f'tools {{ name: "{"f" * 65}" }}'),
    chat("description too large", tools(description="é" * 32_769), "", LONG_TEXT,
         "tools[0].function.description",
         input=USER + f'tools {{ name: "f" description: "{"é" * 32_769}" }}'),
    chat("parameters too large", tools(parameters=json.loads(LARGE_SCHEMA)), "", LONG_TEXT,
         "tools[0].function.parameters",
         input=USER + f"""tools {{ name: "f" parameters_json: '{LARGE_SCHEMA}' }}"""),
    chat("parameters are no object", tools(parameters=[]), "", "invalid_type",
         "tools[0].function.parameters", input=USER + 'tools { name: "f" parameters_json: "[]" }'),
    chat("parameters of another type", tools(parameters={"type": "string"}), "",
         "invalid_function_parameters", "tools[0].function.parameters",
         input=USER + """tools { name: "f" parameters_json: '{"type": "string"}' }"""),
    chat("tool_choice without tools", {"tool_choice": "auto"},
         "chat { tool_choice { mode: MODE_AUTO } }", None, "tool_choice"),
    chat("tool_choice none without tools", {"tool_choice": "none"},
         "chat { tool_choice { mode: MODE_NONE } }", None, "tool_choice"),
    chat("parallel_tool_calls without tools", {"parallel_tool_calls": True},
         "chat { parallel_tool_calls: true }", None, "parallel_tool_calls"),
    *(
        chat(f"{rule} beside a forced call",
             tools() | {"tool_choice": "required", "structured_outputs": {rule: value}},
             f"chat {{ tool_choice {{ mode: MODE_REQUIRED }} }} constraint {{ {proto} }}",
             None, param, input=USER + 'tools { name: "f" }')
        for rule, value, proto, param in [
            ("choice", ["a"], 'choices { values: "a" }', "structured_outputs.choice"),
            ("json_object", True, "json_object: true", "structured_outputs"),
            ("regex", "a", 'regex: "a"', "structured_outputs.regex"),
        ]
    ),
    chat("tool_choice of another function",
         tools() | {"tool_choice": {"type": "function", "function": {"name": "g"}}},
         'chat { tool_choice { mode: MODE_FUNCTION function_name: "g" } }', None, "tool_choice",
         input=USER + 'tools { name: "f" }'),
    chat("allowed tool that is not defined",
         tools() | {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto",
         "tools": [{"type": "function", "function": {"name": "g"}}]}}},
         'chat { tool_choice { mode: MODE_AUTO allowed_functions: "g" } }', None, "tool_choice",
         input=USER + 'tools { name: "f" }'),
]  # fmt: skip
PROMPTS = [
    text("no tokens", {"prompt": []}, "token_ids {}", "empty_array", "prompt"),
    text("token beyond the vocabulary", {"prompt": [50_000]}, "token_ids { ids: 50000 }",
         "invalid_value", "prompt[0]"),
    chat("chat too long", said({"role": "user", "content": "x " * 20}) | {"model": "tiny"},
         'model: "tiny"', "context_length_exceeded", "messages",
         input=f'messages {{ role: ROLE_USER parts {{ text: "{"x " * 20}" }} }}'),
    chat("max_tokens too large", {"model": "tiny", "max_tokens": 9},
         'model: "tiny" stopping { max_tokens: 9 }', "context_length_exceeded", "messages"),
    text("completion too long", {"model": "tiny", "prompt": "x " * 20, "max_tokens": 1},
         f'model: "tiny" text: "{"x " * 20}" stopping {{ max_tokens: 1 }}', None, None),
    text("more unknown tokens than the context", {"prompt": [50_000] * 5000},
         "token_ids { " + "ids: 50000 " * 5000 + "} stopping { max_tokens: 16 }", None, None),
    chat("refusal by the engine", said({"role": "user", "content": '{"fail": "refuse"}'}), "",
         "invalid_value", "messages",
         input="""messages { role: ROLE_USER parts { text: '{"fail": "refuse"}' } }"""),
]  # fmt: skip
INPUTS = [
    embed("no inputs", {"input": []}, "", "empty_array", "input"),
    embed("too many inputs", {"input": ["x"] * 2049}, 'inputs { text: "x" } ' * 2049, LONG_LIST,
          "input"),
    embed("empty input", {"input": ""}, 'inputs { text: "" }', None, "input"),
    embed("empty input among others", {"input": ["x", ""]},
          'inputs { text: "x" } inputs { text: "" }', None, "input[1]"),
    embed("empty token ids among others", {"input": [[1], []]},
          "inputs { token_ids { ids: 1 } } inputs { token_ids {} }", "empty_array", "input[1]"),
    Fault("too many tokens", EMBED, {"input": [[1] * 150_000, [1] * 150_001]},
          EmbedRequest(model="ada", inputs=[EmbedInput(token_ids=TokenIds(ids=[1] * 300_001))]),
          None, "input"),
    embed("token of an input beyond the vocabulary", {"input": [50_000]},
          "inputs { token_ids { ids: 50000 } }", "invalid_value", "input[0]"),
    embed("token of the second input beyond the vocabulary", {"input": [[1], [1, 50_000]]},
          "inputs { token_ids { ids: 1 } } inputs { token_ids { ids: 1 ids: 50000 } }",
          "invalid_value", "input[1][1]"),
    embed("second embedding input too long", {"model": "ada", "input": ["x", "x " * 20]},
          f'model: "ada" inputs {{ text: "x" }} inputs {{ text: "{"x " * 20}" }}', None,
          "input[1]"),
    embed("embedding input too long", {"model": "ada", "input": "x " * 20},
          f'model: "ada" inputs {{ text: "{"x " * 20}" }}', None, None),
    embed("zero dimensions", {"dimensions": 0}, 'inputs { text: "x" } dimensions: 0', INT_BELOW,
          "dimensions"),
    embed("unsupported dimensions", {"dimensions": 4}, 'inputs { text: "x" } dimensions: 4',
          "unsupported_parameter", "dimensions"),
    embed("huge dimensions", {"input": ["x"] * 2048, "dimensions": 4_294_967_295},
          'inputs { text: "x" } ' * 2048 + "dimensions: 4294967295", "unsupported_parameter",
          "dimensions"),
]  # fmt: skip
LONG_PROMPT = "x" * 32_001
IMAGES = [
    Fault("empty image prompt", DRAW, {"prompt": ""},
          GenerateImageRequest(model="scripted-image"), "invalid_value", "prompt"),
    draw("long image prompt", {"prompt": LONG_PROMPT}, f'prompt: "{LONG_PROMPT}"', LONG_TEXT,
         "prompt"),
    draw("prompt beyond the text encoder", {"prompt": "x " * 65}, f'prompt: "{"x " * 65}"',
         "string_above_max_length", "prompt"),
    draw("long negative prompt", {"negative_prompt": LONG_PROMPT},
         f'negative_prompt: "{LONG_PROMPT}"', LONG_TEXT, "negative_prompt"),
    draw("no images", {"n": 0}, "n: 0", INT_BELOW, "n"),
    draw("more than ten images", {"n": 11}, "n: 11", INT_ABOVE, "n"),
    draw("no steps", {"steps": 0}, "steps: 0", INT_BELOW, "steps"),
    draw("too many steps", {"steps": 151}, "steps: 151", INT_ABOVE, "steps"),
    draw("guidance below", {"guidance_scale": -0.5}, "guidance_scale: -0.5", BELOW,
         "guidance_scale"),
    draw("guidance above", {"guidance_scale": 50.5}, "guidance_scale: 50.5", ABOVE,
         "guidance_scale"),
    draw("too many previews", {"partial_images": 4}, "partial_images: 4", INT_ABOVE,
         "partial_images"),
    draw("too narrow", {"size": "63x64"}, "width: 63", "invalid_size", "size"),
    draw("too high", {"size": "64*2049"}, "height: 2049", "invalid_size", "size"),
    draw("too large", {"size": "2048x2048"}, "width: 2048 height: 2048", "invalid_size", "size"),
    draw("far too large", {"size": "99999x99999"}, "width: 99999 height: 99999", "invalid_size",
         "size"),
    draw("failing pipeline", {"prompt": '{"fail": "start"}'},
         """prompt: '{"fail": "start"}'""", None, None, SERVER, 500, Status.INTERNAL),
]  # fmt: skip
TOKENS = [
    tokens("nothing to tokenize", TOKENIZE, {}, "", "missing_required_parameter", "prompt"),
    tokens("chat without messages", TOKENIZE, {"messages": []}, "chat {}", "empty_array",
           "messages"),
    tokens("chat without content", TOKENIZE, said({"role": "user", "content": []}),
           "chat { messages { role: ROLE_USER } }", "empty_array", "messages[0].content"),
    tokens("chat with an unasked tool", TOKENIZE, said(ASKED, ANSWER),
           f'chat {{ {USER} messages {{ role: ROLE_TOOL tool_call_id: "a" parts {{ text: "x" }} }}'
           " }", None, "messages.[1].role"),
    tokens("chat with special tokens", TOKENIZE, said(ASKED) | {"add_special_tokens": True},
           f"chat {{ {USER} }} add_special_tokens: true", "unsupported_value",
           "add_special_tokens"),
    tokens("token without a text", DETOKENIZE, {"tokens": [1, 50_000]},
           "token_ids { ids: 1 ids: 50000 }", "invalid_value", "tokens[1]"),
    tokens("failing tokenizer", TOKENIZE, {"prompt": '{"fail": "start"}'},
           """text: '{"fail": "start"}'""", None, None, SERVER, 500, Status.INTERNAL),
]  # fmt: skip
NOT_FOUND = {"status": 404, "grpc_status": Status.NOT_FOUND}
MODELS = [
    chat("unknown model in a chat", {"model": "no\r\nsuch"}, 'model: "no\\r\\nsuch"',
         "model_not_found", None, **NOT_FOUND),
    text("unknown model with a long name", {"model": "x" * 1000}, f'model: "{"x" * 1000}"',
         "model_not_found", None, **NOT_FOUND),
    embed("unknown model of an embedding", {"model": "nope"},
          'model: "nope" inputs { text: "x" }', "model_not_found", None, **NOT_FOUND),
    chat("chat with an embedding model", {"model": "ada"}, 'model: "ada"', None, "model",
         reason="model_not_capable", **NOT_CAPABLE),
    text("completion of an embedding model", {"model": "ada"}, 'model: "ada"', None, "model",
         reason="model_not_capable", **NOT_CAPABLE),
    embed("embedding of a text model", {"model": "gpt-4"}, 'model: "gpt-4" inputs { text: "x" }',
          None, None, reason="embeddings_not_allowed", **NOT_CAPABLE | {"status": 403}),
    tokens("unknown model of a count", TOKENIZE, {"model": "nope", "prompt": "x"},
           'model: "nope" text: "x"', "model_not_found", None, **NOT_FOUND),
    tokens("count with an embedding model", TOKENIZE, {"model": "ada", "prompt": "x"},
           'model: "ada" text: "x"', None, "model", reason="model_not_capable", **NOT_CAPABLE),
    draw("unknown image model", {"model": "nope"}, 'model: "nope"', "model_not_found", None,
         **NOT_FOUND),
    draw("image request to a text model", {"model": "gpt-4"}, 'model: "gpt-4"', None, "model",
         reason="model_not_capable", **NOT_CAPABLE),
]  # fmt: skip
FAULTS = [
    *SAMPLING, *STOPPING, *OUTPUT, *CONSTRAINTS, *CONVERSATION, *TOOLS, *PROMPTS, *INPUTS, *MODELS,
    *IMAGES, *TOKENS,
    Fault("no model", CHAT, {"model": ""}, GenerateRequest(text="x"), None, None),
    chat("failing engine", said({"role": "user", "content": '{"fail": "start"}'}), "",
         None, None, SERVER, 500, Status.INTERNAL,
         input="""messages { role: ROLE_USER parts { text: '{"fail": "start"}' } }"""),
]  # fmt: skip


@pytest.fixture
def transport() -> str:
    """Errors of the service are the same over both transports, so one is enough."""
    return "session"


@pytest.fixture
async def stack(start_stack: StartStack) -> Stack:
    return await start_stack(TEXT, EMBEDDING, IMAGE)


Answer = tuple[int, str, str | None, str | None, str]


def words(message: str) -> str:
    """The message without the quoted value, which one face may not know."""
    return re.sub(r",? but got .* instead(?=\.)", "", message)


async def over_rest(stack: Stack, path: str, body: Any, **headers: str) -> Answer:
    async with stack.http.post(path, json=body, headers=headers) as response:
        document = await response.json()
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status, error["type"], error["code"], error["param"], words(error["message"])


async def over_grpc(
    stub: InferenceServiceStub, request: Any, **options: Any
) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(request, EmbedRequest):
            await stub.Embed(request, **options)
        elif isinstance(request, TokenizeRequest):
            await stub.Tokenize(request, **options)
        else:
            draws = isinstance(request, GenerateImageRequest)
            method = stub.GenerateImage if draws else stub.Generate
            async for _ in method(request, **options):
                pass
    return caught.value


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    status = rpc_status.from_call(error)
    assert status is not None
    return status


def as_rest(status: status_pb2.Status) -> Answer:
    """The REST error that the edge makes of a gRPC status."""
    error = from_rpc_status(status, admitted=False)
    return error.status, error.type, error.code, error.param, words(error.message)


def details_of(status: status_pb2.Status) -> tuple[str, str, str | None]:
    """Reason, type and param of a status, whose field violations must name the same param."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert info.domain == "isthmus"
    param = info.metadata.get("param")
    for detail in status.details:
        if detail.Unpack(bad):
            assert [violation.field for violation in bad.field_violations] == [param]
    return info.reason, info.metadata["type"], param


def idle(stack: Stack) -> bool:
    registry = stack.server.registry
    return not registry.running_calls and not any(m.admission.running for m in registry.models)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_rest_and_grpc_refuse_with_the_same_error(stack: Stack, fault: Fault) -> None:
    body = DEFAULTS[fault.path] | fault.parameters
    expected = (fault.status, fault.type, fault.code, fault.param)
    answers = [await over_rest(stack, fault.path, body)]
    if fault.path not in PLAIN:
        answers.append(await over_rest(stack, fault.path, body | {"stream": True}))
    assert [answer[:4] for answer in answers] == [expected] * len(answers)
    assert len({answer[4] for answer in answers}) == 1

    error = await over_grpc(stack.stub, fault.request)
    assert error.code() is fault.grpc_status
    status = status_of(error)
    assert details_of(status) == (fault.reason or fault.code or fault.type, fault.type, fault.param)
    assert as_rest(status)[:4] == expected
    if not fault.own_words:
        assert as_rest(status)[4] == answers[0][4]
    assert "canary" not in str(error)
    await eventually(lambda: idle(stack))


def test_table_has_at_least_90_rows_with_unique_names() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))
    assert len(FAULTS) >= 90


# Python 3.13's JSON parser accepts 10,000 levels, earlier ones fewer.
NESTED = '{"":' * 12_000 + "{}" + "}" * 12_000
GRPC_ONLY = [
    ("no input", GenerateRequest(model="scripted"), "missing_required_parameter", "messages"),
    ("input without a value", text_format.Parse("inputs {}", EmbedRequest(model="ada")), None,
     "input"),
    *(
        (f"{name} is {value}", text_format.Parse(
            f'model: "scripted" text: "x" sampling {{ {name}: {value} }}', GenerateRequest()),
         "invalid_value", name)
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty",
                     "repetition_penalty")
        for value in ("nan", "inf")
    ),
    ("logit_bias is nan", text_format.Parse('model: "scripted" text: "x" sampling { logit_bias '
     "{ key: 1 value: nan } }", GenerateRequest()), "invalid_value", "logit_bias"),
    ("schema is no JSON", text_format.Parse('model: "scripted" text: "x" constraint { json_schema: '
     '"{" }', GenerateRequest()), "invalid_value", SCHEMA),
    ("schema nested too deep", text_format.Parse('model: "scripted" text: "x" constraint { '
     f"json_schema: '{NESTED}' }}", GenerateRequest()), "invalid_value", SCHEMA),
]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "code", "param"), [row[1:] for row in GRPC_ONLY], ids=[r[0] for r in GRPC_ONLY]
)
async def test_fault_that_json_cannot_express_is_refused(
    stack: Stack, request_: Any, code: str | None, param: str
) -> None:
    error = await over_grpc(stack.stub, request_)
    assert error.code() is Status.INVALID_ARGUMENT
    assert details_of(status_of(error)) == (code or INVALID, INVALID, param)


# Errors that depend on the state of the service


HANG = {"model": "scripted", "prompt": '{"fail": "hang"}', "max_tokens": 9}
HANG_PROTO = GenerateRequest(model="scripted", text='{"fail": "hang"}')
SHORT = DEFAULTS[COMPLETION]
SHORT_PROTO = GenerateRequest(model="scripted", text="hi")
OVERLOADED = (503, SERVER, None, None)


async def both(stack: Stack, body: Any = SHORT, request: Any = SHORT_PROTO) -> tuple[Answer, Any]:
    """The REST error and the gRPC error of one request, which must be the same."""
    rest = await over_rest(stack, COMPLETION, body)
    error = await over_grpc(stack.stub, request)
    assert as_rest(status_of(error))[:4] == rest[:4]
    return rest, error


async def test_loading_model_is_unavailable_on_both_faces() -> None:
    server = InferenceServer(ServerConfig(listen="127.0.0.1:0", models=(TEXT,)))
    await server.start()
    try:
        await _check_loading(server)
    finally:
        await server.close()


async def _check_loading(server: InferenceServer) -> None:
    target = f"127.0.0.1:{server.port}"
    config = EdgeConfig(port=0, upstreams=(target,), settle_seconds=0.0)
    async with (
        serving(config) as (_, port),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        grpc.aio.insecure_channel(target) as channel,
    ):
        async with http.post(COMPLETION, json=SHORT) as response:
            error = (await response.json())["error"]
            assert int(response.headers["retry-after"]) >= 1
        assert (response.status, error["type"], error["code"], error["param"]) == OVERLOADED
        refused = await over_grpc(InferenceServiceStub(channel), SHORT_PROTO)
    assert refused.code() is Status.UNAVAILABLE
    assert details_of(status_of(refused))[0] == "engine_unavailable"
    assert as_rest(status_of(refused))[:4] == OVERLOADED


async def test_draining_service_is_unavailable_on_both_faces(stack: Stack) -> None:
    stack.server.registry.draining.set()
    rest, error = await both(stack)
    assert rest[:4] == OVERLOADED
    assert (error.code(), details_of(status_of(error))[0]) == (Status.UNAVAILABLE, "draining")


async def test_full_queue_is_429(start_stack: StartStack) -> None:
    stack = await start_stack(msgspec.structs.replace(TEXT, max_running=1, max_queued=0))
    running = stack.stub.Generate(HANG_PROTO)
    await eventually(lambda: stack.engine.health().running == 1)
    rest, error = await both(stack)
    assert rest[:4] == (429, "requests", "server_overloaded", None)
    assert error.code() is Status.RESOURCE_EXHAUSTED
    assert details_of(status_of(error))[0] == "server_overloaded"
    running.cancel()


async def test_waiting_longer_than_queue_timeout_is_503(start_stack: StartStack) -> None:
    model = msgspec.structs.replace(TEXT, max_running=1, queue_timeout_seconds=0.1)
    stack = await start_stack(model)
    running = stack.stub.Generate(HANG_PROTO)
    await eventually(lambda: stack.engine.health().running == 1)
    rest, error = await both(stack)
    assert rest[:4] == OVERLOADED
    assert (error.code(), details_of(status_of(error))[0]) == (Status.UNAVAILABLE, "queue_timeout")
    running.cancel()


async def test_deadline_is_504(stack: Stack) -> None:
    rest = await over_rest(stack, COMPLETION, HANG, **{"x-request-timeout": "0.2"})
    assert rest[:4] == (504, SERVER, "deadline_exceeded", None)
    error = await over_grpc(stack.stub, HANG_PROTO, timeout=0.2)
    assert error.code() is Status.DEADLINE_EXCEEDED
    await eventually(lambda: idle(stack))


@pytest.mark.parametrize(
    ("fail", "reason", "grpc_status", "expected"),
    [
        ("mid", SERVER, Status.INTERNAL, (500, SERVER, None, None)),
        ("die", "engine_died", Status.UNAVAILABLE, OVERLOADED),
    ],
)
async def test_engine_failure_after_output_is_the_same_error_on_both_faces(
    start_stack: StartStack,
    fail: str,
    reason: str,
    grpc_status: grpc.StatusCode,
    expected: tuple[int, str, str | None, str | None],
) -> None:
    script = json.dumps({"fail": fail, "step_seconds": 0.01})
    body = {"model": "scripted", "prompt": script, "max_tokens": 9}
    answers = []
    for request in (body, body | {"stream": True}):
        stack = await start_stack()
        async with stack.http.post(COMPLETION, json=request) as response:
            content = await response.read()
        if request is body:
            assert response.status == expected[0]
        else:
            assert response.status == 200
            content = content.rstrip(b"\n").rpartition(b"data: ")[2]
        error = json.loads(content)["error"]
        answers.append((expected[0], error["type"], error["code"], error["param"]))
    assert answers == [expected] * 2
    failed = await over_grpc(stack.stub, GenerateRequest(model="scripted", text=script))
    assert failed.code() is grpc_status
    assert details_of(status_of(failed)) == (reason, SERVER, None)
    assert as_rest(status_of(failed))[:4] == expected
    assert "canary" not in str(failed)


@pytest.mark.parametrize("stream", [False, True])
async def test_engine_failure_after_the_finish_is_logged_and_the_response_succeeds(
    stack: Stack, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    script = json.dumps({"fail": "late", "tokens": 3})
    body = {"model": "scripted", "prompt": script, "stream": stream}
    async with stack.http.post(COMPLETION, json=body) as response:
        assert response.status == 200
        content = await response.text()
    if stream:
        assert content.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"stop"' in content
        assert "error" not in content
    else:
        assert json.loads(content)["choices"][0]["text"] == "w0 w1 w2 "
    call = stack.stub.Generate(GenerateRequest(model="scripted", text=script))
    assert [part async for part in call][-1].HasField("usage")
    assert await call.code() is Status.OK
    assert [r.levelname for r in caplog.records if r.name == "inference.serve"] == ["ERROR"] * 2
    await eventually(lambda: idle(stack))


async def test_missing_or_wrong_key_is_refused(start_stack: StartStack, tmp_path: Path) -> None:
    """Without a key the codes differ by design: over REST `code` is null."""
    keys = tmp_path / "keys.json"
    create_key(keys, "someone")
    guarded = await start_stack(keys=keys, key="wrong")
    for header, code in (("", None), ("Bearer wrong", "invalid_api_key")):
        rest = await over_rest(guarded, COMPLETION, SHORT, authorization=header)
        assert rest[:4] == (401, INVALID, code, None)
    server = InferenceServer(
        ServerConfig(listen="127.0.0.1:0", models=(TEXT, EMBEDDING), keys_file=keys)
    )
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = InferenceServiceStub(channel)
            for metadata, reason in (
                ((), "missing_api_key"),
                ((("authorization", "Bearer wrong"),), "invalid_api_key"),
            ):
                error = await over_grpc(stub, SHORT_PROTO, metadata=metadata)
                assert error.code() is Status.UNAUTHENTICATED
                assert details_of(status_of(error)) == (reason, INVALID, None)
    finally:
        await server.close()
