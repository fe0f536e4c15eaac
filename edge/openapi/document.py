"""The OpenAPI document, made from the types that decode requests and encode responses.

msgspec makes their schemas. This file adds what types cannot express: the descriptions of the
parameters, the unsupported parameters, and the rules that are checked after decoding because
OpenAI has its own error messages for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from edge.openai.chat import request as chat_request
from edge.openai.chat.schema import ChatRequest, Function, FunctionTool
from edge.openai.chat.tools import TOOL_REFUSALS
from edge.openai.completions import request as completions
from edge.openai.completions.schema import CompletionRequest
from edge.openai.decoding.decoder import Refusals
from edge.openai.decoding.types import NotOffered
from edge.openai.embeddings import request as embeddings
from edge.openai.embeddings.schema import EmbeddingsRequest
from edge.openai.errors import ErrorBody
from edge.openai.images import request as images
from edge.openai.images.schema import ImageRequest
from edge.openai.text.request import STREAM_OPTIONS_REFUSALS, STRUCTURED_OUTPUTS_REFUSALS
from edge.openai.text.schema import StreamOptions, StructuredOutputs
from edge.openapi.components import HEADERS, PARAMETERS, RESPONSES
from edge.openapi.operations import ABOUT, OPERATIONS, TAGS, Operation
from edge.openapi.parameters import MEMBERS

Json = dict[str, Any]

_SCHEMAS: Final = "#/components/schemas/"
_REFUSALS: Final[Mapping[type[Struct], Refusals]] = {
    ChatRequest: chat_request.REFUSALS,
    CompletionRequest: completions.REFUSALS,
    EmbeddingsRequest: embeddings.REFUSALS,
    ImageRequest: images.REFUSALS,
    FunctionTool: TOOL_REFUSALS,
    Function: TOOL_REFUSALS,
    StreamOptions: STREAM_OPTIONS_REFUSALS,
    StructuredOutputs: STRUCTURED_OUTPUTS_REFUSALS,
}
# Types that accept null as `content` only so that a later check refuses it with OpenAI's message.
_NEVER_NULL: Final = ("SystemMessage", "DeveloperMessage", "UserMessage", "ToolMessage")
# Types whose `model` is optional only so that a later check refuses its absence likewise.
_NEEDS_MODEL: Final = ("ChatRequest", "CompletionRequest")
# Schemas of properties whose types accept more; a later check refuses it with OpenAI's message.
_NARROWER: Final[Json] = {
    "AssistantMessage": {"audio": {"type": "null"}},
    "ChatRequest": {
        "modalities": {
            "anyOf": [
                {"type": "array", "items": {"const": "text"}, "maxItems": 2},
                {"type": "null"},
            ]
        }
    },
    "ImageRequest": {"output_format": {"enum": ["png", "jpeg", "webp", None]}},
    "ImageUrl": {"url": {"type": "string", "pattern": "^data:image/(png|jpe?g|webp|gif);base64,."}},
}


def openapi_document(*, version: str, ignore_unknown: bool, keyed: bool) -> bytes:
    """The document, as JSON.

    Args:
        version: The version of the service.
        ignore_unknown: Whether unknown parameters are dropped instead of refused.
        keyed: Whether requests need an API key.
    """
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Isthmus",
            "version": version,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": ".", "description": "Where this document comes from"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": [{"bearer": []}] if keyed else [{}, {"bearer": []}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(ignore_unknown=ignore_unknown),
            "responses": {
                name: _failure(text, headers) for name, text, headers in RESPONSES.values()
            },
            "headers": HEADERS,
            "parameters": PARAMETERS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
    return msgspec.json.encode(document)


# Paths


def _paths() -> Json:
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return paths


def _operation(operation: Operation) -> Json:
    described: Json = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "responses": _responses(operation),
    }
    if operation.open:
        described["security"] = []
    if operation.parameters:
        described["parameters"] = [
            {"$ref": f"#/components/parameters/{name}"} for name in operation.parameters
        ]
    if operation.request is not None:
        described["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref(operation.request),
                    "examples": {
                        name: {"value": example} for name, example in operation.examples.items()
                    },
                }
            },
        }
    return described


def _responses(operation: Operation) -> Json:
    content = {
        media_type: {"schema": answer if isinstance(answer, dict) else _ref(answer)}
        for media_type, answer in operation.answers.items()
    }
    if operation.chunk is not None:
        content["text/event-stream"] = {"schema": _event(operation.chunk)}
    if operation.events:
        content["text/event-stream"] = {"schema": _named_event(operation.events)}
    success: Json = {
        "description": operation.success,
        "headers": _header_refs(("x-request-id", *operation.headers)),
        "content": content,
    }
    failures = {
        str(status): {"$ref": f"#/components/responses/{RESPONSES[status][0]}"}
        for status in operation.failures
    }
    others = {
        str(status): {
            "description": text,
            "headers": _header_refs(("x-request-id",)),
            "content": {} if answer is None else {"application/json": {"schema": _ref(answer)}},
        }
        for status, (text, answer) in operation.other.items()
    }
    return {"200": success, **others, **failures}


def _event(chunk: type[Struct]) -> Json:
    """The schema of one event, which OpenAPI 3.1 requires as the schema of the whole stream."""
    return {
        "type": "object",
        "description": f"One event of the stream. Its data is a `{chunk.__name__}`; at the end "
        "`[DONE]`, or an `ErrorBody` without it where the answer fails after its 200.",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, _data(chunk, ErrorBody)]}},
        "required": ["data"],
    }


def _named_event(events: Mapping[str, type[Struct]]) -> Json:
    """The same for a stream whose events have names."""
    return {
        "type": "object",
        "description": "One event of the stream. Where the answer fails after its 200 the last "
        "one has no name, and an `ErrorBody` as its data.",
        "properties": {"event": {"enum": list(events)}, "data": _data(*events.values(), ErrorBody)},
        "required": ["data"],
    }


def _data(*types: type[Struct]) -> Json:
    return {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_ref(type_) for type_ in types]},
    }


def _failure(text: str, headers: Iterable[str]) -> Json:
    return {
        "description": text,
        "headers": _header_refs(("x-request-id", *headers)),
        "content": {"application/json": {"schema": _ref(ErrorBody)}},
    }


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _ref(type_: type[Struct]) -> Json:
    return {"$ref": f"{_SCHEMAS}{type_.__name__}"}


# Schemas


def _schemas(*, ignore_unknown: bool) -> Json:
    requests = _of_types(operation.request for operation in OPERATIONS)
    requests = {
        name: _without_not_offered(schema)
        for name, schema in requests.items()
        if name not in _NOT_OFFERED
    }
    for type_, refusals in _REFUSALS.items():
        _describe_refused(requests[type_.__name__], refusals.harmless)
    for name in _NEEDS_MODEL:
        del requests[name]["properties"]["model"]["default"]
        requests[name]["required"].append("model")
    for name in _NEVER_NULL:
        choices: list[Json] = requests[name]["properties"]["content"]["anyOf"]
        choices.remove({"type": "null"})
    for name, members in _NARROWER.items():
        requests[name]["properties"] |= members
    if ignore_unknown:
        for schema in requests.values():
            schema.pop("additionalProperties", None)
    for name, members in MEMBERS.items():
        for member, text in members.items():
            requests[name]["properties"][member]["description"] = text
    return {**_answers(), **requests}


def _answers() -> Json:
    answers = _of_types(
        (
            ErrorBody,
            *(
                answer
                for operation in OPERATIONS
                for answer in (
                    *operation.answers.values(),
                    operation.chunk,
                    *operation.events.values(),
                )
                if not isinstance(answer, dict)
            ),
        )
    )
    for schema in answers.values():
        _mark_required(schema)
    return answers


def _of_types(types: Iterable[type[Struct] | None]) -> dict[str, Json]:
    known = dict.fromkeys(type_ for type_ in types if type_ is not None)
    _, components = msgspec.json.schema_components(known, ref_template=_SCHEMAS + "{name}")
    return components


_NOT_OFFERED: Final = {type_.__name__ for type_ in NotOffered.__subclasses__()}


def _without_not_offered(node: Any) -> Any:
    """Removes the types that are not offered from every `anyOf`."""
    if isinstance(node, list):
        return [_without_not_offered(entry) for entry in node if not _is_not_offered(entry)]
    if not isinstance(node, dict):
        # JSON Schema's patterns (ECMA-262) have no `\Z`.
        return node.replace(r"\Z", "$") if isinstance(node, str) else node
    kept = {
        key: _without_not_offered(entry)
        for key, entry in node.items()
        if not _is_not_offered(entry)
    }
    choices = kept.get("anyOf", ())
    return choices[0] if len(choices) == 1 else kept


def _is_not_offered(node: Any) -> bool:
    name = node.get("$ref", "") if isinstance(node, dict) else node
    return isinstance(name, str) and name.removeprefix(_SCHEMAS) in _NOT_OFFERED


def _describe_refused(schema: Json, harmless: Mapping[str, frozenset[bytes]]) -> None:
    for name, texts in harmless.items():
        values = [None, *(msgspec.json.decode(text) for text in sorted(texts))]
        schema["properties"][name] = {
            # 1 and 1.0 are equal in JSON Schema, and an enum has no duplicates.
            "enum": [value for i, value in enumerate(values) if value not in values[:i]],
            "description": "Not offered: refused by name unless it asks for nothing.",
        }


def _mark_required(schema: Json) -> None:
    """Marks properties with a default as required; a string with a default is a constant."""
    required = schema.setdefault("required", [])
    for name, member in schema.get("properties", {}).items():
        if "default" not in member:
            continue
        default = member.pop("default")
        required.append(name)
        if isinstance(default, str):
            member["const"] = default
