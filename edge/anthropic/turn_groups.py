"""Turns of one role that follow each other, their blocks, and the results of tools among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from contract.limits import MAX_PARTS
from contract.refusals import shown
from edge.anthropic import turn_schema as schema
from edge.openai import errors
from edge.openai.errors import OpenAIError

# The index of the turn that stands for `system`.
SYSTEM: Final = -1
Place = tuple[int, ...]
"""Index of a turn, or SYSTEM; of a block in it; and of a block in a tool_result."""
Group = Sequence[tuple[int, schema.Turn]]
"""Turns of one role that follow each other, each with its index."""
Block = schema.UserBlock | schema.AssistantBlock | schema.SystemBlock


def groups_of(turns: Sequence[schema.Turn]) -> Iterator[Group]:
    """Turns of one role that follow each other; not more than one message has room for."""
    for _, same in groupby(enumerate(turns), lambda each: type(each[1])):
        group: list[tuple[int, schema.Turn]] = []
        size = 0
        for i, turn in same:
            parts = 1 if isinstance(turn.content, str) else len(turn.content)
            if group and size + parts > MAX_PARTS:
                yield group
                group, size = [], 0
            group.append((i, turn))
            size += parts
        yield group


def blocks_of(group: Group) -> Iterator[tuple[Place, Block]]:
    """The blocks of turns, each with its place; a text is one block."""
    for i, turn in group:
        if isinstance(turn.content, str):
            yield (i,), schema.TextBlock(turn.content)
        else:
            for j, block in enumerate(turn.content):
                yield (i, j), block


def path(place: Place) -> str:
    """The place as errors name it."""
    turn, *blocks = place
    if turn == SYSTEM:
        return "system" + "".join(f"[{j}]" for j in blocks)
    return f"messages[{turn}]" + "".join(f".content[{j}]" for j in blocks)


def check_results(groups: Sequence[Group]) -> None:
    """Refuses a tool_use without a result in the next turn, and a result of no such tool_use."""
    # The turn of each tool_use that has no result yet.
    used: dict[str, int] = {}
    for group in groups:
        missing = dict(used)
        calls: dict[str, int] = {}
        for place, block in blocks_of(group):
            if isinstance(block, schema.ToolResultBlock):
                if block.tool_use_id not in used:
                    raise _no_such_use(block.tool_use_id, f"{path(place)}.tool_use_id")
                missing.pop(block.tool_use_id, None)
            elif isinstance(block, schema.ToolUseBlock):
                calls[block.id] = place[0]
        if missing:
            raise _no_result(missing)
        used = calls
    if used:
        raise _no_result(used)


def _no_such_use(name: str, at: str) -> OpenAIError:
    return errors.invalid_request(
        f"Invalid '{at}': the turn before has no 'tool_use' block with the id '{shown(name)}'.",
        at,
        "invalid_value",
    )


def _no_result(missing: dict[str, int]) -> OpenAIError:
    i = next(iter(missing.values()))
    ids = shown(", ".join(list(missing)[:8]), 256)
    return errors.invalid_request(
        f"Invalid 'messages[{i}]': the next turn must have a 'tool_result' block for each "
        f"'tool_use' block. These ids have none: {ids}",
        f"messages[{i}]",
        "invalid_value",
    )
