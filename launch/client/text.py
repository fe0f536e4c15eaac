"""Requests to text models: options for their parameters, and the response as it arrives."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from contract.parameters import PARAMETERS
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    GenerateRequest,
    GenerateResponse,
)
from isthmus.v1.usage_pb2 import Usage
from launch.client.options import count, utf8
from launch.client.services import NO_NAMES, Clock, Service, failures
from launch.failure import CommandError

_FINISHES: Final = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_TOOL_CALLS: "tool_calls",
    FINISH_REASON_CONTENT_FILTER: "content_filter",
}


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each parameter of the contract."""
    group = parser.add_argument_group("parameters")
    group.add_argument("--max-tokens", type=count, metavar="N", help="The most tokens to generate.")
    group.add_argument(
        "--stop",
        action="append",
        type=utf8,
        metavar="TEXT",
        help="Ends the text; may be repeated.",
    )
    for parameter in PARAMETERS:
        name = option(parameter.name)
        about = parameter.description.replace("%", "%%")
        if parameter.kind is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, help=about)
        else:
            group.add_argument(
                name,
                type=utf8 if parameter.kind is str else parameter.kind,
                action="append" if parameter.repeated else "store",
                metavar={int: "N", float: "X"}.get(parameter.kind, "TEXT"),
                help=about,
            )


def option(name: str) -> str:
    """The command-line option of a parameter: `--top-p` for `top_p`."""
    return f"--{name.replace('_', '-')}"


def fill(message: GenerateRequest, arguments: argparse.Namespace) -> None:
    """Sets the parameters that the command line has.

    Raises:
        CommandError: A number does not fit into its field.
    """
    for parameter in PARAMETERS:
        value = getattr(arguments, parameter.name)
        if value is None:
            continue
        try:
            parameter.set(message, value)
        except ValueError as error:
            raise CommandError(f"{option(parameter.name)}: {value} is out of range.", 2) from error
    if arguments.max_tokens is not None:
        message.stopping.max_tokens = arguments.max_tokens
    message.stopping.strings.extend(arguments.stop or ())


class Answer:
    """A response to a text request.

    Attributes:
        text, reasoning: All so far.
        calls: Tool calls: id, name and arguments of each.
        finish: "stop", "length", ...; "" until it has ended.
        usage: Complete once it has ended.
        clock: Times of its output.
    """

    def __init__(self) -> None:
        self.text = self.reasoning = self.finish = ""
        self.calls: list[dict[str, str]] = []
        self.usage = Usage()
        self.clock = Clock()

    def add(self, part: GenerateResponse) -> Iterator[tuple[bool, str]]:
        """Adds a message; yields its new text, each with whether it is reasoning."""
        for delta in part.deltas[:]:
            self.clock.tick()
            if delta.reasoning:
                self.reasoning += delta.reasoning
                yield True, delta.reasoning
            if delta.text:
                self.text += delta.text
                yield False, delta.text
            for piece in delta.tool_calls[:]:
                if piece.index >= len(self.calls):
                    self.calls.append({"id": piece.id, "name": piece.name, "arguments": ""})
                self.calls[piece.index]["arguments"] += piece.arguments
        for finish in part.finishes[:]:
            self.finish = _FINISHES.get(finish.reason, "unknown")
        if part.HasField("usage"):
            self.usage = part.usage

    @property
    def figures(self) -> str:
        """Times and tokens, for people."""
        usage = self.usage
        cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
        tokens = f"{usage.prompt_tokens} tokens in{cached} · {usage.completion_tokens} out"
        parts = (self.clock.text(usage.completion_tokens), tokens, self.finish)
        return " · ".join(part for part in parts if part)


def generate(
    service: Service,
    request: GenerateRequest,
    show: Callable[[bool, str], None],
    names: Mapping[str, str] = NO_NAMES,
) -> Answer:
    """Calls Generate and passes each new text to `show`, with whether it is reasoning.

    Args:
        service: The service.
        request: The request.
        show: Is called for each text.
        names: The service's names of parameters, each with that of the command; for errors.

    Raises:
        CommandError: The request was refused or failed.
        KeyboardInterrupt: The call is cancelled.
    """
    answer = Answer()
    call = service.stub.Generate(request, **service.options)
    try:
        with failures(names):
            for part in call:
                for is_reasoning, text in answer.add(part):
                    show(is_reasoning, text)
    finally:
        call.cancel()
    return answer
