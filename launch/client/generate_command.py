"""`isthmus generate`: one response of a text model."""

from __future__ import annotations

import argparse
import json
import mimetypes
import sys
from pathlib import Path

from isthmus.v1.chat_pb2 import ROLE_SYSTEM, ROLE_USER, ChatMessage, ContentPart, Media
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import MODEL_KIND_TEXT
from launch.client import services
from launch.client.text import add_parameters, fill, generate
from launch.failure import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus generate`."""
    add = parser.add_argument
    add("prompt", nargs="*", help="what to answer; standard input without it, or in addition")
    add("--system", metavar="TEXT", help="instructions to the model")
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
        answer = generate(service, request, _quiet if arguments.json else _show)
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
    if not sys.stdin.isatty() and (piped := sys.stdin.read()):
        prompt = f"{prompt}\n\n{piped}" if prompt else piped
    if not prompt:
        raise CommandError("There is no prompt. Pass one, or pipe one in.", 2)
    request = GenerateRequest()
    fill(request, arguments)
    if arguments.schema is not None:
        request.constraint.json_schema = _read(arguments.schema).decode()
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}.", 2) from error
