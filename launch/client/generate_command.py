"""`isthmus generate`: one response of a text model."""

from __future__ import annotations

import argparse
import json
import mimetypes
import sys
from pathlib import Path

from contract.parameters import PARAMETERS
from isthmus.v1.chat_pb2 import ROLE_SYSTEM, ROLE_USER, ChatMessage, ContentPart, Media
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import MODEL_KIND_TEXT
from launch.client import services
from launch.client.options import piped, utf8
from launch.client.text import add_parameters, fill, generate, option
from launch.failure import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus generate`."""
    add = parser.add_argument
    add(
        "prompt",
        nargs="*",
        type=utf8,
        help="what to answer; standard input without it, or in addition",
    )
    add("--system", type=utf8, metavar="TEXT", help="instructions to the model")
    add("--raw", action="store_true", help="continue the prompt, without the chat template")
    add("--image", action="append", type=Path, metavar="FILE", help="for models that see")
    add("--schema", type=Path, metavar="FILE", help="JSON Schema that the response obeys")
    add("--json", action="store_true", help="one JSON document with text, usage and finish_reason")
    add("--stats", action="store_true", help="times and tokens, on standard error")
    services.add_arguments(parser)
    add_parameters(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the response as it arrives."""
    request = _request(arguments)
    with services.services(arguments) as found:
        service = services.chosen(found, arguments.model, MODEL_KIND_TEXT)
        request.model = service.name
        show = _quiet if arguments.json else _show
        answer = generate(service, request, show, _names(arguments))
    if arguments.json:
        usage = answer.usage
        document = {
            "model": service.model.id,
            "text": answer.text,
            "reasoning": answer.reasoning,
            "tool_calls": answer.calls,
            "finish_reason": answer.finish,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "cached_tokens": usage.cached_tokens,
            },
        }
        print(json.dumps(document, ensure_ascii=False))
    elif not answer.text.endswith("\n"):
        print(flush=True)
    if arguments.stats:
        print(answer.figures, file=sys.stderr)
    return 0


def _show(is_reasoning: bool, text: str) -> None:
    if not is_reasoning:
        print(text, end="", flush=True)


def _quiet(_is_reasoning: bool, _text: str) -> None:
    pass


def _request(arguments: argparse.Namespace) -> GenerateRequest:
    prompt = " ".join(arguments.prompt)
    if more := piped():
        prompt = f"{prompt}\n\n{more}" if prompt else more
    if not prompt:
        raise CommandError("There is no prompt. Pass one, or pipe one in.", 2)
    request = GenerateRequest()
    fill(request, arguments)
    if arguments.schema is not None:
        try:
            request.constraint.json_schema = _read(arguments.schema).decode()
        except UnicodeDecodeError as error:
            raise CommandError(f"--schema: {arguments.schema} is not UTF-8.", 2) from error
    if arguments.raw:
        if arguments.system or arguments.image:
            raise CommandError("--raw takes a text only, without --system and --image.", 2)
        request.text = prompt
        return request
    if arguments.system:
        parts = [ContentPart(text=arguments.system)]
        request.chat.messages.append(ChatMessage(role=ROLE_SYSTEM, parts=parts))
    message = request.chat.messages.add(role=ROLE_USER, parts=[ContentPart(text=prompt)])
    for path in arguments.image or ():
        mime_type = mimetypes.guess_type(path.name)[0] or "image/png"
        message.parts.add(image=Media(data=_read(path), mime_type=mime_type))
    return request


def _names(arguments: argparse.Namespace) -> dict[str, str]:
    """The service's names of parameters, each with that of this command."""
    names = {each.name: option(each.name) for each in PARAMETERS}
    at = f"messages[{1 if arguments.system else 0}].content"
    for k, path in enumerate(arguments.image or (), 1):
        for inside in (".image_url.url", ".image_url", ".type", ""):
            names[f"{at}[{k}]{inside}"] = f"--image {path}"
    return names | {
        "response_format.json_schema.schema": "--schema",
        "response_format.json_schema": "--schema",
        "response_format": "--schema",
        "messages": "prompt",
        "max_tokens": "--max-tokens",
        "stop": "--stop",
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}.", 2) from error
