"""Validates finished answers against the schema or other constraint of their request.

The grammar should make every answer valid. An invalid one is a fault of the engine: the call
fails, and the log has the number of such answers, without their text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from inference.errors import InferenceError
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    ChoiceFinish,
    GenerateResponse,
)

log = logging.getLogger(__name__)

# Characters that are checked on the event loop; this many take about a millisecond.
_CHECKED_AT_ONCE: Final = 32 * 1024


# Parsers of reasoning may leave them out before the text.
_LINE_ENDS: Final = ("", "\n", "\n\n")


@dataclass(frozen=True, slots=True)
class Promise:
    """The rules that each finished answer to a request must obey.

    Attributes:
        rule: The constraint of the text, as in the contract; None without one.
        validator: Of the text's schema, pattern or grammar; None if it is not checked.
        choices: The texts to choose from.
        functions: Validators of the arguments of the tools that may be called; None where the
            arguments are free.
        forced: Whether the answer is at least one tool call.
    """

    rule: str | None = None
    validator: Any = None
    choices: frozenset[str] = frozenset()
    functions: Mapping[str, Any] = field(default_factory=dict)
    forced: bool = False

    @property
    def rules_text(self) -> bool:
        """Whether the answer is a text whose rule is checked, and so no tool call."""
        return self.rule in ("json_schema", "json_object", "choices")

    @property
    def binds(self) -> bool:
        """Whether there is anything to check."""
        checks = self.rules_text or self.forced or self.validator is not None
        return checks or any(self.functions.values())

    @property
    def is_slow(self) -> bool:
        """Whether the check of a short answer may take seconds."""
        validators = (self.validator, *self.functions.values())
        return any(getattr(validator, "is_slow", False) for validator in validators)


@dataclass(slots=True)
class _Answer:
    text: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    arguments: dict[int, list[str]] = field(default_factory=dict)

    def size(self) -> int:
        return sum(map(len, self.text)) + sum(
            len(piece) for pieces in self.arguments.values() for piece in pieces
        )


class AnswerCheck:
    """Collects the choices of one request and checks each one when it ends.

    `echo` is the text that each choice begins with.
    """

    broken = 0

    def __init__(self, promise: Promise, echo: str) -> None:
        self._promise = promise
        self._echo = echo
        self._answers: dict[int, _Answer] = {}

    async def check(self, output: str | GenerateResponse) -> None:
        """Takes a piece of output before it is emitted.

        Raises:
            InferenceError: It ends a choice that breaks the promise.
        """
        if isinstance(output, str):
            self._answer(0).text.append(output)
            return
        for delta in output.deltas:
            answer = self._answer(delta.index)
            answer.text.append(delta.text)
            for call in delta.tool_calls:
                if call.name:
                    answer.names[call.index] = call.name
                answer.arguments.setdefault(call.index, []).append(call.arguments)
        for finish in output.finishes:
            if not _is_cut(finish):
                await self._finished(self._answer(finish.index))

    def _answer(self, index: int) -> _Answer:
        return self._answers.setdefault(index, _Answer())

    async def _finished(self, answer: _Answer) -> None:
        if answer.size() > _CHECKED_AT_ONCE or self._promise.is_slow:
            kept = await asyncio.to_thread(self._keeps, answer)
        else:
            kept = self._keeps(answer)
        if not kept:
            AnswerCheck.broken += 1
            log.error("an answer broke its constraint; %d so far", AnswerCheck.broken)
            raise InferenceError(
                "constraint_violated",
                "The model's answer does not fit the schema or the other constraint of the "
                "request. Please try again.",
            )

    def _keeps(self, answer: _Answer) -> bool:
        promise = self._promise
        for index, name in answer.names.items():
            if promise.forced and name not in promise.functions:
                return False
            validator = promise.functions.get(name)
            arguments = "".join(answer.arguments.get(index, ()))
            if validator is not None and not fits(arguments, validator):
                return False
        if answer.names or promise.forced:
            # A constraint of the text leaves room for strict calls only.
            strict = all(promise.functions.get(name) for name in answer.names.values())
            return bool(answer.names) and (strict or not promise.rules_text)
        text = "".join(answer.text).removeprefix(self._echo)
        match promise.rule:
            case "json_schema":
                return fits(text, promise.validator)
            case "json_object":
                return isinstance(_parsed(text), dict)
            case "choices":
                # Parsers of reasoning and calls may leave out white space around the text.
                return text.strip() in {choice.strip() for choice in promise.choices}
            case "regex" | "grammar" if promise.validator is not None:
                return any(promise.validator.is_valid(f"{end}{text}") for end in _LINE_ENDS)
        return True


def _is_cut(finish: ChoiceFinish) -> bool:
    """Whether a limit or a stop of the request ended the choice, so that its end is missing."""
    stopped = finish.HasField("stop_string") or finish.HasField("stop_token_id")
    return finish.reason == FINISH_REASON_LENGTH or stopped


def fits(text: str, validator: Any) -> bool:
    """Whether a text is JSON of a value that a validator accepts."""
    value = _parsed(text)
    return value is not _BROKEN and bool(validator.is_valid(value))


_BROKEN: Final = object()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_float=_number, parse_int=_integer)
    except (ValueError, RecursionError):
        return _BROKEN


def _integer(text: str) -> Decimal | int:
    """Exact; Python's own integers are not read from thousands of digits."""
    return int(text) if len(text) < sys.int_info.str_digits_check_threshold else Decimal(text)


def _number(text: str) -> Decimal | float:
    """Exact, so that 0.3 is a multiple of 0.1; but an exponent may ask for millions of digits."""
    if "e" not in text.lower():
        return Decimal(text)
    largest = sys.float_info.max
    return max(-largest, min(largest, float(text)))
