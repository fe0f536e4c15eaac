"""The forms in which vLLM's grammars of tool calls write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.parser.abstract_parser import DelegatingParser
from vllm.sampling_params import StructuredOutputsParams

from inference.engines.call_reader import CallForm
from inference.engines.structural_tags import calls_beginning
from inference.engines.vllm_constraints import is_promised, offered
from isthmus.v1 import chat_pb2


def form_of(
    rule: StructuredOutputsParams | None,
    chat: chat_pb2.ChatInput,
    parser: type[Any] | None,
    skipped: Sequence[str],
) -> CallForm | None:
    """The form of the calls if the grammar writes them as JSON; None if vLLM's parser reads them.

    Args:
        rule: Of vLLM's tool parser, before RuleTranslator translates it for llguidance.
        chat: From the request.
        parser: vLLM's class of it.
        skipped: Texts of special tokens that are left out of the output.
    """
    names = [tool.name for _, tool in offered(chat)]
    form, mode = None, chat.tool_choice.mode
    if rule is None or parser is None or not names or not reads_by_phases(parser):
        return None
    if rule.structural_tag is not None:
        form = call_form(json.loads(rule.structural_tag), names)
    elif rule.json is not None and mode == chat_pb2.ToolChoice.MODE_REQUIRED:
        form = CallForm({calls_beginning(name): name for name in names})
    elif rule.json is not None and mode == chat_pb2.ToolChoice.MODE_FUNCTION:
        # The output is the arguments alone, or with Mistral's parser a list of one call.
        alone = parser.tool_parser_cls.supports_required_and_named
        form = CallForm({"" if alone else calls_beginning(names[0], "arguments"): names[0]})
    marks = [*form.beginnings, *form.marks] if form else []
    return None if any(text in mark for text in skipped for mark in marks) else form


def leaves_no_call(rule: StructuredOutputsParams | None, chat: chat_pb2.ChatInput) -> bool:
    """Whether an answer to the rule that was sent is text, whatever calls it may look like.

    A pattern or a grammar may describe calls, and vLLM adds those of strict tools to other rules.
    """
    if rule is None or rule.regex is not None or rule.grammar is not None:
        return False
    return not any(is_promised(tool, chat.tool_choice.mode) for _, tool in offered(chat))


def reads_by_phases(parser: type[Any] | None) -> bool:
    """Whether a parser of vLLM finds reasoning first, and calls in the text behind it."""
    return getattr(parser, "parse_delta", None) is DelegatingParser.parse_delta


def without_calls(parser: type[Any]) -> type[Any]:
    """The parser for reasoning only: what looks like a call is text."""
    return type("TextParser", (parser,), {"tool_parser_cls": None})


def call_form(tag: Mapping[str, Any], names: Sequence[str]) -> CallForm | None:
    """The form of the calls in a structural tag of vLLM; None if their arguments are no JSON.

    Args:
        tag: From vLLM, for a model with a JSON form of calls.
        names: Of the functions that may be called, in the order of the request.
    """
    root = tag.get("format", {})
    either = root.get("type") == "or"
    if either:
        root = root["elements"][0]
    tags: list[Mapping[str, Any]] = []
    if not _collect(root, tags) or not tags or len(tags) % max(len(names), 1):
        return None
    # vLLM writes the same number of tags for each function, one function after the other.
    share = len(tags) // len(names)
    beginnings = {tag["begin"]: names[i // share] for i, tag in enumerate(tags)}
    if not all(name in begin for begin, name in beginnings.items()):
        return None
    if either:
        return CallForm(beginnings, _first(root), either=True)
    is_free = root["type"] == "triggered_tags" and not root["at_least_one"]
    return CallForm(beginnings, tuple(root["triggers"]) if is_free else ())


def _collect(node: Mapping[str, Any], tags: list[Mapping[str, Any]]) -> bool:
    """Collects the tags of calls; False if there is anything but these and fixed marks."""
    match node["type"]:
        case "const_string":
            return True
        case "tag":
            content = node["content"]
            if not isinstance(node["begin"], str):
                return False
            if content["type"] == "json_schema":
                tags.append(node)
                return bool(content.get("style", "json") == "json")
            return _collect(content, tags)
        case "triggered_tags" | "tags_with_separator":
            return all(_collect(inner, tags) for inner in node["tags"])
        case "sequence":
            return all(_collect(inner, tags) for inner in node["elements"])
    return False


def _first(node: Mapping[str, Any]) -> tuple[str, ...]:
    """The strings with which output in a format may begin."""
    match node["type"]:
        case "const_string":
            return (node["value"],)
        case "tag":
            return (node["begin"],)
        case "sequence":
            return _first(node["elements"][0])
    return tuple(tag["begin"] for tag in node["tags"])
