"""The order of tool messages in a chat, which edge and inference service both check.

After an assistant message with tool calls come the tool messages with the results, one for each
call, before any other message. A tool message refers to a call by its id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from contract.refusals import Refusal, broken_rule, shown

# A message: its index, the id of the call whose result it has (None unless it is a tool message),
# and the ids of its own tool calls.
Turn = tuple[int, str | None, Collection[str]]


def tool_order_fault(turns: Iterable[Turn]) -> Refusal | None:
    """The first fault in the order; None if there is none."""
    calls: Collection[str] = ()
    # Ids of calls without a tool message yet; a dict keeps their order.
    unanswered: dict[str, None] = {}
    for index, answered, made in turns:
        if answered is not None:
            if answered not in calls:
                return broken_rule(
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'.",
                    f"messages.[{index}].role",
                )
            unanswered.pop(answered, None)
            continue
        if unanswered:
            break
        calls, unanswered = made, dict.fromkeys(made)
    if not unanswered:
        return None
    return broken_rule(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to "
        "each 'tool_call_id'. The following tool_call_ids did not have response messages: "
        f"{shown(', '.join(list(unanswered)[:8]), 256)}",
        "messages",
    )
