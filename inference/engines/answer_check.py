"""Validates finished answers against the schema or other constraint of their request.

The grammar should make every answer valid. An invalid one is a fault of the engine: the call
fails, and the log has the number of such answers, without their text. An answer whose check does
not end within limits passes, because the grammar has made it, and is counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
VALID: Final = "valid"
BROKEN: Final = "broken"
UNCHECKED: Final = "unchecked"
NO_CHECKS: Final = {VALID: 0, BROKEN: 0, UNCHECKED: 0}

CheckWithin = Callable[[str, str, Sequence[str]], Awaitable[bool | None]]
"""Checks texts against a rule within limits, as RuleProcess.fits."""


@dataclass(frozen=True, slots=True)
class SlowRule:
    """A rule against which the check of a short answer may take seconds, or years.

    Attributes:
        kind: "schema", "regex", "grammar" or "lark".
        rule: Its text.
        validator: Of a schema, for values of at most `depth` levels; their check ends soon.
    """

    kind: str
    rule: str
    validator: Any = None
    depth: int = -1


class AnswerChecks:
    """The checks of one engine's answers.

    Attributes:
        within: Checks what may be slow.
        results: How many answers were valid, broken and unchecked.
    """

    def __init__(self, within: CheckWithin) -> None:
        self.within = within
        self.results = dict(NO_CHECKS)


@dataclass(frozen=True, slots=True)
class Promise:
    """The rules that each finished answer to a request must obey.

    Attributes:
        rule: The constraint of the text, as in the contract; None without one.
        validator: Of the text's schema, pattern or grammar, or a SlowRule; None if it is not
            checked.
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

    def __init__(self, promise: Promise, echo: str, checks: AnswerChecks) -> None:
        self._promise = promise
        self._echo = echo
        self._checks = checks
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
        slow: list[_Slow] = []
        if answer.size() > _CHECKED_AT_ONCE:
            kept = await asyncio.to_thread(self._keeps, answer, slow)
        else:
            kept = self._keeps(answer, slow)
        result = VALID if kept else BROKEN
        for kind, rule, texts in slow if kept else ():
            found = await self._checks.within(kind, rule, texts)
            if found is None:
                log.warning("the check of an answer took too long; its grammar has made it")
                result = UNCHECKED
            elif not found:
                result = BROKEN
                break
        results = self._checks.results
        results[result] += 1
        if result == BROKEN:
            log.error("an answer broke its constraint; %d so far", results[BROKEN])
            raise InferenceError(
                "constraint_violated",
                "The model's answer does not fit the schema or the other constraint of the "
                "request. Please try again.",
            )

    def _keeps(self, answer: _Answer, slow: list[_Slow]) -> bool:
        """Whether an answer is valid, if the checks that it adds to `slow` say so too."""
        promise = self._promise
        for index, name in answer.names.items():
            if promise.forced and name not in promise.functions:
                return False
            validator = promise.functions.get(name)
            arguments = "".join(answer.arguments.get(index, ()))
            if validator is not None and not _fits_or_is_slow(arguments, validator, slow):
                return False
        if answer.names or promise.forced:
            # A constraint of the text leaves room for strict calls only.
            strict = all(promise.functions.get(name) for name in answer.names.values())
            return bool(answer.names) and (strict or not promise.rules_text)
        text = "".join(answer.text).removeprefix(self._echo)
        match promise.rule:
            case "json_schema":
                return _fits_or_is_slow(text, promise.validator, slow)
            case "json_object":
                return isinstance(_parsed(text), dict)
            case "choices":
                # Parsers of reasoning and calls may leave out white space around the text.
                return text.strip() in {choice.strip() for choice in promise.choices}
            case "regex" | "grammar" if promise.validator is not None:
                texts = [f"{end}{text}" for end in _LINE_ENDS]
                slow.append((promise.validator.kind, promise.validator.rule, texts))
        return True


def _is_cut(finish: ChoiceFinish) -> bool:
    """Whether a limit or a stop of the request ended the choice, so that its end is missing."""
    stopped = finish.HasField("stop_string") or finish.HasField("stop_token_id")
    return finish.reason == FINISH_REASON_LENGTH or stopped


_Slow = tuple[str, str, Sequence[str]]


def fits(text: str, validator: Any) -> bool:
    """Whether a text is JSON of a value that a validator accepts."""
    value = _parsed(text)
    return value is not _NO_JSON and _accepts(validator, value)


def _accepts(validator: Any, value: Any) -> bool:
    try:
        return bool(validator.is_valid(value))
    except UnicodeEncodeError:
        return False  # "\ud83d" is half of a character.


def _fits_or_is_slow(text: str, validator: Any, slow: list[_Slow]) -> bool:
    if not isinstance(validator, SlowRule):
        return fits(text, validator)
    value = _parsed(text)
    if value is _NO_JSON:
        return False
    if _levels(value) <= validator.depth:
        return _accepts(validator.validator, value)
    slow.append((validator.kind, validator.rule, [text]))
    return True


def _levels(value: Any) -> int:
    level, count = [value], 0
    while level := [
        inner
        for part in level
        if isinstance(part, (dict, list))
        for inner in (part.values() if isinstance(part, dict) else part)
    ]:
        count += 1
    return count


_NO_JSON: Final = object()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_float=_number, parse_int=_integer)
    except (ValueError, RecursionError):
        return _NO_JSON


def _integer(text: str) -> Decimal | int:
    """Exact; Python's own integers are not read from thousands of digits."""
    return int(text) if len(text) < sys.int_info.str_digits_check_threshold else Decimal(text)


def _number(text: str) -> Decimal | float:
    """Exact, so that 0.3 is a multiple of 0.1; but an exponent may ask for millions of digits."""
    if "e" not in text.lower():
        return Decimal(text)
    largest = sys.float_info.max
    return max(-largest, min(largest, float(text)))
