"""The input of a custom tool is read as it comes, wherever the arguments are cut."""

from __future__ import annotations

import json
import random
import time

import pytest

from edge.openai.responses.custom_input import InputReader, input_of

TEXTS = ("", "a", 'say "hi"\n', "\\", "\\\\n", "é😀\u2028", "</tool_call>", "{}", '"', "\x00\t")


def joined(arguments: str, dice: random.Random) -> str:
    """What a reader returns for pieces of the arguments."""
    reader, read = InputReader(), ""
    while arguments:
        cut = dice.randint(1, 3)
        read += reader.feed(arguments[:cut])
        arguments = arguments[cut:]
    return read + reader.rest()


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_text_is_that_of_the_argument(text: str, ascii_only: bool) -> None:
    for template in ('{"input":%s}', '{ "input" : %s }\n', '{"input":%s,"more":"x"}'):
        arguments = template % json.dumps(text, ensure_ascii=ascii_only)
        assert input_of(arguments) == text
        for seed in range(5):
            assert joined(arguments, random.Random(seed)) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", ""),
        ("plain words", "plain words"),
        ('{"patch": "x"}', '{"patch": "x"}'),
        ('{"input": 5}', '{"input": 5}'),
        ('["a"]', '["a"]'),
        ('{"inp', '{"inp'),
    ],
)
def test_arguments_in_another_form_are_the_text(arguments: str, text: str) -> None:
    assert input_of(arguments) == text
    assert joined(arguments, random.Random(1)) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input":"', ""),
        ('{"input":"ab', "ab"),
        ('{"input":"ab\\', "ab"),
        ('{"input":"ab\\u00', "ab"),
        ('{"input":"ab\\ud83d', "ab"),
        ('{"input":"ab\\ud83d\\ude', "ab"),
    ],
)
def test_arguments_that_are_cut_off_give_the_whole_characters(arguments: str, text: str) -> None:
    assert input_of(arguments) == text
    assert joined(arguments, random.Random(2)) == text


def test_line_breaks_that_are_not_escaped_are_kept() -> None:
    assert input_of('{"input":"a\nb"}') == "a\nb"
    assert input_of('{"input":"a\n\\"b\\""}') == 'a\n"b"'


@pytest.mark.parametrize("seed", range(30))
def test_any_arguments_give_the_same_text_whole_or_in_pieces(seed: int) -> None:
    dice = random.Random(seed)
    alphabet = '{}":, \\u\n' + "inputd8e30aé😀"
    for _ in range(100):
        head = dice.choice(['{"input":"', '{"input"', ""])
        arguments = head + "".join(dice.choices(alphabet, k=dice.randrange(30)))
        assert joined(arguments, dice) == input_of(arguments)


@pytest.mark.parametrize("head", ["", '{"input" ', "plain "])
def test_each_character_is_read_once(head: str) -> None:
    reader = InputReader()
    reader.feed(head)
    began = time.process_time()
    for _ in range(40_000):
        reader.feed(" \n  ")
    assert time.process_time() - began < 3
    assert reader.rest() == head + " \n  " * 40_000
