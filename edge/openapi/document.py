"""The OpenAPI document, made of the types that decode requests and encode responses.

msgspec generates the schemas. This module adds descriptions of parameters, and rules that are
checked after decoding so that errors have OpenAI's texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from edge.anthropic.errors import AnthropicErrorBody
from edge.openai.decoding.types import NotOffered
from edge.openai.errors import ErrorBody
from edge.openapi import messages
from edge.openapi.components import HEADERS, MODEL_HEADERS, MODEL_PARAMETERS, PARAMETERS, RESPONSES
from edge.openapi.operation import Operation
from edge.openapi.operations import ABOUT, OPERATIONS, TAGS
from edge.openapi.parameters import DESCRIPTIONS

Json = dict[str, Any]

_SCHEMAS: Final = "#/components/schemas/"
# The forms of errors, each with what the names of its responses begin with.
_ERRORS: Final[dict[type[Struct], str]] = {ErrorBody: "", AnthropicErrorBody: "Messages"}
# Later checks refuse some values that the types accept: null as the content of these messages,
_NEVER_NULL: Final = ("SystemMessage", "DeveloperMessage", "UserMessage", "ToolMessage")
# a missing model, which is "" in the type,
_NEEDS_MODEL: Final = (
    "ChatRequest",
    "CompletionRequest",
    "ResponsesRequest",
    "InputTokensRequest",
    "MessagesRequest",
    "CountTokensRequest",
)
# and values outside these schemas.
_IMAGE_URL: Final = {"type": "string", "pattern": "^data:image/(png|jpe?g|webp|gif);base64,."}
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
    "ImageUrl": {"url": _IMAGE_URL},
    "InputImage": {"image_url": _IMAGE_URL, "file_id": {"type": "null"}},
    "ResponsesRequest": {"truncation": {"enum": ["disabled", None]}},
    "InputTokensRequest": {"truncation": {"enum": ["disabled", None]}},
}
# Tools of types that the schema does not list; the model does not see them.
_OTHER_TOOL: Final[Json] = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "not": {"enum": ["custom", "function", "namespace"]}}
    },
    "required": ["type"],
}


def openapi_document(*, version: str, ignore_unknown: bool, keyed: bool) -> bytes:
    """The document, as JSON.

    Args:
        version: The project's version.
        ignore_unknown: Whether unknown parameters are dropped instead of refused.
        keyed: Whether an API key is needed.
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
        "security": [*([] if keyed else [{}]), {"bearer": []}, {"apiKey": []}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(ignore_unknown=ignore_unknown),
            "responses": {
                prefix + name: _response(text, headers, _json(_ref(body)))
                for body, prefix in _ERRORS.items()
                for name, text, headers in RESPONSES.values()
            },
            "headers": HEADERS,
            "parameters": PARAMETERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    return msgspec.json.encode(document)


def _paths() -> Json:
    paths: Json = {}
    for operation in OPERATIONS:
        method = operation.method or ("get" if operation.request is None else "post")
        paths.setdefault(operation.path, {})[method] = _operation(operation)
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
    parameters = MODEL_PARAMETERS if operation.request else operation.parameters
    if parameters:
        described["parameters"] = [
            {"$ref": f"#/components/parameters/{name}"} for name in parameters
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
        media_type: {"schema": body if isinstance(body, dict) else _ref(body)}
        for media_type, body in operation.content.items()
    }
    if operation.chunk is not None:
        content["text/event-stream"] = {"schema": _event(operation.chunk)}
    if operation.events:
        content["text/event-stream"] = {"schema": _named_event(operation)}
    headers = operation.headers or (MODEL_HEADERS if operation.request else ())
    others = {
        str(status): _response(text, (), {} if body is None else _json(_ref(body)))
        for status, (text, body) in operation.other.items()
    }
    failures = {
        str(status): {
            "$ref": f"#/components/responses/{_ERRORS[operation.error]}{RESPONSES[status][0]}"
        }
        for status in operation.failures
    }
    return {"200": _response(operation.success, headers, content), **others, **failures}


def _response(text: str, headers: Iterable[str], content: Json) -> Json:
    refs = {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-request-id", *headers)}
    return {"description": text, "headers": refs, "content": content}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _event(chunk: type[Struct]) -> Json:
    """One event of a stream, as the stream's schema: OpenAPI 3.1 has no other place for it."""
    return {
        "type": "object",
        "description": f"One event of the stream. Its data is a `{chunk.__name__}`; at the end "
        "`[DONE]`, or an `ErrorBody` without it where the answer fails after its 200.",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, _data(chunk, ErrorBody)]}},
        "required": ["data"],
    }


def _named_event(operation: Operation) -> Json:
    """One event of a stream whose events have names."""
    types = list(dict.fromkeys(operation.events.values()))
    names = list(operation.events)
    if operation.done:
        text = (
            "The last one has no name, which clients read as `message`, and `[DONE]` as its data."
        )
        names.append("message")
        data = {"anyOf": [{"const": "[DONE]"}, _data(*types)]}
    elif "error" in operation.events:
        text = "Where the answer fails after its 200 the last one is `error`."
        data = _data(*types)
    else:
        text = (
            "Where the answer fails after its 200 the last one has no name, and an `ErrorBody` as "
            "its data."
        )
        data = _data(*types, ErrorBody)
    return {
        "type": "object",
        "description": f"One event of the stream. {text}",
        "properties": {"event": {"enum": names}, "data": data},
        "required": ["data"],
    }


def _data(*types: type[Struct]) -> Json:
    return {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_ref(type_) for type_ in types]},
    }


def _ref(type_: type[Struct]) -> Json:
    return {"$ref": f"{_SCHEMAS}{type_.__name__}"}


def _schemas(*, ignore_unknown: bool) -> Json:
    requests = {
        name: _without_not_offered(schema)
        for name, schema in _of_types(operation.request for operation in OPERATIONS).items()
        if name not in _NOT_OFFERED
    }
    for name in _NEEDS_MODEL:
        del requests[name]["properties"]["model"]["default"]
        requests[name]["required"].append("model")
    # Items are decoded one by one: a message without a type is recognised by its role.
    requests["InputMessage"]["required"].remove("type")
    requests["InputImage"]["required"].append("image_url")
    for name in ("ResponsesRequest", "InputTokensRequest"):
        choices: list[Json] = requests[name]["properties"]["tools"]["anyOf"]
        tools: Json = next(choice for choice in choices if "items" in choice)
        tools["items"] = {"anyOf": [*tools["items"]["anyOf"], _OTHER_TOOL]}
    for name in _NEVER_NULL:
        choices = requests[name]["properties"]["content"]["anyOf"]
        choices.remove({"type": "null"})
    for name, narrower in _NARROWER.items():
        requests[name]["properties"] |= narrower
    if ignore_unknown:
        for schema in requests.values():
            schema.pop("additionalProperties", None)
    for name, texts in (DESCRIPTIONS | messages.DESCRIPTIONS).items():
        for parameter, text in texts.items():
            requests[name]["properties"][parameter]["description"] = text
    return {**_response_schemas(), **requests}


def _response_schemas() -> Json:
    types: list[type[Struct] | None] = [*_ERRORS]
    for each in OPERATIONS:
        types += (type_ for type_ in each.content.values() if not isinstance(type_, dict))
        types += (each.chunk, *each.events.values())
    schemas = _of_types(types)
    for schema in schemas.values():
        _mark_sent(schema)
    return schemas


def _of_types(types: Iterable[type[Struct] | None]) -> dict[str, Json]:
    known = dict.fromkeys(type_ for type_ in types if type_ is not None)
    _, components = msgspec.json.schema_components(known, ref_template=_SCHEMAS + "{name}")
    return components


_NOT_OFFERED: Final = {type_.__name__ for type_ in NotOffered.__subclasses__()}


def _without_not_offered(node: Any) -> Any:
    """Removes NotOffered types, which are never accepted, from every union."""
    if isinstance(node, list):
        return [_without_not_offered(entry) for entry in node if not _is_not_offered(entry)]
    if not isinstance(node, dict):
        # Regular expressions of JSON Schema (ECMA-262) have no `\Z`; use `$`.
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


def _mark_sent(schema: Json) -> None:
    """Properties with a default are always sent; a string with a default is a constant."""
    required = schema.setdefault("required", [])
    for name, value in schema.get("properties", {}).items():
        if "default" not in value:
            continue
        required.append(name)
        if isinstance(default := value.pop("default"), str):
            value["const"] = default
