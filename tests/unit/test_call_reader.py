"""Calls in text whose form a grammar has fixed, however the text is cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from inference.engines.call_reader import CallForm, CallReader

_TAG = '<tool_call>\n{"name": "f", "arguments": '
_OTHER = '<tool_call>\n{"name": "g", "arguments": '
_END = "}\n</tool_call>"
_HERMES = {_TAG: "f", _OTHER: "g"}
_HARD = json.dumps({"a": 'x"}\\', "b": [{}, [1e-7]], "c": _TAG + "{}" + _END, "d": "}]"})
_MARKS = ("<tool_call>",)


def _cuts(text: str) -> Iterator[list[str]]:
    yield [text]
    yield list(text)
    for seed in range(20):
        draw, pieces, rest = random.Random(seed), [], text
        while rest:
            size = draw.choice((1, 2, 3, 7, 20))
            pieces.append(rest[:size])
            rest = rest[size:]
        yield pieces


def _read(form: CallForm, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The content, and the calls with their arguments."""
    reader, content = CallReader(form), ""
    calls: list[tuple[str, str]] = []
    for piece in [found for text in pieces for found in reader.feed(text)] + [*reader.rest()]:
        content += piece.content
        if piece.name:
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        elif piece.index >= 0:
            name, arguments = calls[piece.index]
            calls[piece.index] = name, arguments + piece.arguments
    return content, calls


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        pytest.param(
            CallForm(_HERMES), f"{_TAG}{_HARD}{_END}", "", [("f", _HARD)], id="a forced call"
        ),
        pytest.param(
            CallForm(_HERMES),
            f"{_TAG}{_HARD}{_END}\n{_OTHER}{{}}{_END}",
            "",
            [("f", _HARD), ("g", "{}")],
            id="two calls",
        ),
        pytest.param(CallForm({"": "f"}), _HARD, "", [("f", _HARD)], id="arguments alone"),
        pytest.param(
            CallForm({'{"name":"f","parameters":': "f", '{"name":"g","parameters":': "g"}),
            f'[{{"name":"g","parameters":{_HARD}}},{{"name":"f","parameters":{{}}}}]',
            "",
            [("g", _HARD), ("f", "{}")],
            id="a list",
        ),
        pytest.param(
            CallForm(_HERMES, _MARKS),
            f"Well: <tool{_TAG}{_HARD}{_END} and more <tool_call>",
            "Well: <tool",
            [("f", _HARD)],
            id="text, then a call",
        ),
        pytest.param(CallForm(_HERMES, _MARKS), "Just <tool", "Just <tool", [], id="text"),
        pytest.param(
            CallForm(_HERMES, _MARKS),
            'Well: <tool_call>\n{"name"',
            'Well: <tool_call>\n{"name"',
            [],
            id="text, and a call that is cut before its name",
        ),
        pytest.param(
            CallForm(_HERMES), f'{_TAG}{{"a":"b\\', "", [("f", '{"a":"b')], id="cut in an escape"
        ),
        pytest.param(
            CallForm(_HERMES, tuple(_HERMES), either=True),
            f"{_OTHER}{_HARD}{_END}",
            "",
            [("g", _HARD)],
            id="either a call",
        ),
        pytest.param(
            CallForm(_HERMES, tuple(_HERMES), either=True),
            json.dumps({"a": f"{_TAG}{{}}{_END}"}),
            json.dumps({"a": f"{_TAG}{{}}{_END}"}),
            [],
            id="or text",
        ),
        pytest.param(
            CallForm(_HERMES, tuple(_HERMES), either=True),
            "<tool_",
            "<tool_",
            [],
            id="or its start",
        ),
    ],
)
def test_calls_are_read_for_any_cut(
    form: CallForm, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    for pieces in _cuts(text):
        assert _read(form, pieces) == (content, calls), pieces
