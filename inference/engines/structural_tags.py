"""vLLM's structural tags as grammars of llguidance, which enforces more of JSON Schema.

vLLM describes the form of tool calls as a tree of formats: marks, JSON of a schema, free text until
a mark. Each format becomes a rule in llguidance's Lark dialect. Formats of models whose arguments
are no JSON, or free, or whose marks are token ids, have no such rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_HEAD: Final = "%llguidance {}\n"
# llguidance tokenizes text that must follow, and finds special tokens in it, which it then refuses.
_UNFORCED: Final = '%llguidance {"no_forcing": true}\n'
# The first lines of the grammars made here.
HEADS: Final = (_HEAD, _UNFORCED)
_TEXT = "/(?s:.*)/"


class NoRuleError(ValueError):
    """A format that llguidance's dialect does not have."""


def lark_grammar(
    tag: dict[str, Any], special: Mapping[str, int], json_rule: Callable[[Any], str]
) -> str:
    """The grammar of a structural tag; raises NoRuleError.

    Args:
        tag: From vLLM.
        special: Texts of tokens that are no text to llguidance, with their ids.
        json_rule: Makes the JSON that follows `%json` of a schema.
    """
    if "format" not in tag:
        raise NoRuleError
    return _Grammar(special, json_rule).of(tag["format"])


def calls_grammar(arguments: Mapping[str, str], several: bool, *, forces: bool = True) -> str:
    """The grammar of a JSON list of calls.

    Args:
        arguments: What follows `%json`, for each name of a function.
        several: Whether more than one call is allowed.
        forces: False if a schema has texts of special tokens.
    """
    rules = []
    for number, (name, rule) in enumerate(arguments.items()):
        opening = _quoted(calls_beginning(name))
        rules += [f'call{number}: {opening} arguments{number} "}}"']
        rules += [f"arguments{number}: %json {rule}"]
    call = " | ".join(f"call{number}" for number in range(len(arguments)))
    more = '("," call)*' if several else ""
    head = _HEAD if forces else _UNFORCED
    return head + "\n".join([f'start: "[" call {more} "]"', f"call: {call}", *rules, ""])


def calls_beginning(name: str, key: str = "parameters") -> str:
    """The JSON of a call before its arguments, which are the member `key`."""
    return f'{{"name":{json.dumps(name)},"{key}":'


def unforced_grammar(schema: str) -> str:
    """The grammar of the JSON that follows `%json`, for a schema with texts of special tokens."""
    return f"{_UNFORCED}start: %json {schema}\n"


class _Grammar:
    def __init__(self, special: Mapping[str, int], json_rule: Callable[[Any], str]) -> None:
        self._special = special
        self._json_rule = json_rule
        self._rules: list[str] = []
        found = sorted(map(re.escape, special), key=len, reverse=True)
        self._marks = re.compile(f"({'|'.join(found)})") if found else None

    def of(self, root: dict[str, Any]) -> str:
        start = self._format(root)
        rules = "\n".join([f"start: {start}", *self._rules, ""])
        special = self._marks and ('"pattern' in rules or self._marks.search(rules))
        return (_UNFORCED if special else _HEAD) + rules

    def _rule(self, body: str, attribute: str = "") -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attribute}: {body}")
        return name

    def _format(self, node: dict[str, Any]) -> str:
        kind = node["type"]
        match kind:
            case "const_string":
                return self._literal(node["value"])
            case "json_schema" if node.get("style", "json") == "json" and not node.get("excludes"):
                return self._rule(f"%json {self._json_rule(node['json_schema'])}")
            case "any_text" if not node.get("max_tokens") and not node.get("max_chars"):
                return self._text(node.get("excludes", ()))
            case "regex":
                return self._rule(f"/{_inner(node['pattern'])}/")
            case "sequence":
                return self._rule(" ".join(map(self._format, node["elements"])))
            case "or":
                return self._choice(map(self._format, node["elements"]))
            case "optional" | "plus" | "star":
                sign = {"optional": "?", "plus": "+", "star": "*"}[kind]
                return self._rule(f"({self._format(node['content'])}){sign}")
            case "tag":
                return self._rule(f"{self._literal(_text(node['begin']))} {self._rest(node)}")
            case "triggered_tags":
                return self._triggered(node)
            case "tags_with_separator":
                return self._separated(node)
        raise NoRuleError

    def _rest(self, tag: dict[str, Any]) -> str:
        """A tag behind its beginning."""
        if _is_free(tag["content"]):
            raise NoRuleError
        ends = tag["end"] if isinstance(tag["end"], list) else [tag["end"]]
        end = self._choice(self._literal(_text(end)) for end in ends)
        return f"{self._format(tag['content'])} {end}"

    def _separated(self, node: dict[str, Any]) -> str:
        tag = self._choice(map(self._format, node["tags"]))
        more = "" if node["stop_after_first"] else f"({self._literal(node['separator'])} {tag})*"
        found = self._rule(f"{tag} {more}")
        return found if node["at_least_one"] else self._rule(f"({found})?")

    def _triggered(self, node: dict[str, Any]) -> str:
        """Free text with tags in it; with `at_least_one`, tags and white space only."""
        if node["at_least_one"]:
            tag = self._choice(map(self._format, node["tags"]))
            return tag if node["stop_after_first"] else self._rule(f"{tag} (/[ \\n]?/ {tag})*")
        parts = []
        for trigger in node["triggers"]:
            rests = [
                f"{self._literal(_text(tag['begin'])[len(trigger) :])} {self._rest(tag)}"
                for tag in node["tags"]
                if _text(tag["begin"]).startswith(trigger)
            ]
            parts.append(f"{self._until(trigger)} {self._choice(rests)}")
        part = self._choice(parts)
        text = self._text((*node.get("excludes", ()), *node["triggers"]))
        if node["stop_after_first"]:
            return self._choice([part, text])
        return self._rule(f"({part})* {text}")

    def _until(self, trigger: str) -> str:
        """Text up to the trigger and with it."""
        if trigger in self._special:
            return f"{self._text(())} {self._literal(trigger)}"
        if self._marks and self._marks.search(trigger):
            raise NoRuleError
        return self._rule(f"{_TEXT} {_quoted(trigger)}", "[lazy]")

    def _text(self, excluded: Any) -> str:
        """Any text without the excluded ones; special tokens are no text anyway."""
        marks = [_inner(re.escape(text)) for text in excluded if text not in self._special]
        if not marks:
            return self._rule(_TEXT)
        # Only a terminal, which has a name in capitals, can be such an intersection.
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: {_TEXT} & ~/(?s:.*({'|'.join(marks)}).*)/")
        return name

    def _literal(self, text: str) -> str:
        pieces = self._marks.split(text) if self._marks else [text]
        found = [
            f"<[{self._special[piece]}]>" if piece in self._special else _quoted(piece)
            for piece in pieces
            if piece
        ]
        return " ".join(found) or '""'

    def _choice(self, options: Any) -> str:
        return self._rule(" | ".join(dict.fromkeys(options)))


def _is_free(node: dict[str, Any]) -> bool:
    """Whether a format has text that no schema describes."""
    inner = [*node.get("elements", ()), *node.get("tags", ())]
    if isinstance(node.get("content"), dict):
        inner.append(node["content"])
    return node["type"] == "any_text" or any(map(_is_free, inner))


def free_texts(node: Any, name: str, *, inside: bool = False) -> int:
    """How many formats of any text there are in the calls of the function `name`."""
    if isinstance(node, list):
        return sum(free_texts(inner, name, inside=inside) for inner in node)
    if not isinstance(node, dict):
        return 0
    if inside and node.get("type") == "any_text":
        return 1
    if node.get("type") == "json_schema":
        return 0
    begin = node.get("begin")
    if isinstance(begin, str) and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", begin):
        inside = True
    return sum(free_texts(inner, name, inside=inside) for inner in node.values())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NoRuleError  # a token id
    return value


def _inner(pattern: str) -> str:
    """A pattern as it may stand between slashes."""
    return pattern.replace("/", r"\x2F")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def replaced(node: Any, parts: Sequence[Any], other: Any) -> Any:
    """A schema with another one in the place of some parts."""
    if node in parts:
        return other
    if isinstance(node, dict):
        return {key: replaced(inner, parts, other) for key, inner in node.items()}
    if isinstance(node, list):
        return [replaced(inner, parts, other) for inner in node]
    return node


def bound_white_space(node: Any) -> None:
    """Allows one space where xgrammar would allow any number."""
    if isinstance(node, dict):
        if node.get("type") == "json_schema":
            node["max_whitespace_cnt"] = 1
            return
        for inner in node.values():
            bound_white_space(inner)
    elif isinstance(node, list):
        for inner in node:
            bound_white_space(inner)


def special_tokens(tokenizer: Any) -> Mapping[str, int]:
    """Tokens that llguidance does not take for text, by what they stand for."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {
        token.content: number
        for number, token in added.items()
        if token.special or (token.content[:1] == "<" and token.content[-1:] == ">")
    }
