"""Names of properties: the patterns that stand for them, and which of them a schema may have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

import jsonschema_rs

from inference.engines.json_schema.errors import Path, SchemaError
from inference.engines.json_schema.patterns import ANY_TEXT, PatternError, any_of, translated
from inference.engines.json_schema.rules import ADVICE, MOST_OPTIONAL, OF_NAMES

# A grammar of names has several spellings of these characters, and one of a declared name.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
# Keywords with which a merged object admits properties that it does not declare.
OPEN: Final = {"patternProperties": {ANY_TEXT: True}, "additionalProperties": False}


def set_others(out: dict[str, Any], pattern: str, schema: Any) -> None:
    out["patternProperties"] = {pattern: schema}
    out["additionalProperties"] = False


def check_names(names: Iterable[Any], path: Path) -> None:
    if any(isinstance(name, str) and _CONTROL.search(name) for name in names):
        raise SchemaError(path, "has a name with a control character")


def is_plain(rule: Any) -> bool:
    """Whether a schema can be read without the one around it."""
    return isinstance(rule, dict) and not re.search(r'"\$(ref|dynamicRef)"', json.dumps(rule))


def all_obey(rule: dict[str, Any], names: set[str]) -> bool:
    try:
        return all(jsonschema_rs.is_valid(rule, name, validate_formats=True) for name in names)
    except ValueError:
        return False  # It is no schema of the latest dialect.


def pattern_of(text: str, path: Path) -> str:
    try:
        return translated(text)
    except PatternError as error:
        raise SchemaError(path) from error


def without_advice(rule: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a schema of names that restrict them."""
    restricting = {key: value for key, value in rule.items() if key not in ADVICE}
    if restricting.get("type") == "string":
        del restricting["type"]
    return restricting


def listed_names(rule: Any) -> list[str] | None:
    """The names that a schema of names lists; None if it has another form, or lists many."""
    values: Any = None
    if isinstance(rule, dict) and len(restricting := without_advice(rule)) == 1:
        values = [rule["const"]] if "const" in restricting else restricting.get("enum")
    if values is None or len(values) > MOST_OPTIONAL:
        return None
    return [value for value in values if isinstance(value, str)]


def pattern_of_names(rule: dict[str, Any], path: Path) -> str:
    match rule:
        case {"enum": list(names), **rest} if not rest:
            texts = [name for name in names if isinstance(name, str)]
            return any_of(texts) if texts else ""
        case {"format": str(name), **rest} if not rest and name in OF_NAMES:
            return OF_NAMES[name]
        case {"pattern": str(pattern), **rest} if not rest:
            return pattern_of(pattern, path)
    if not set(rule) - {"minLength", "maxLength"}:
        longest = int(rule["maxLength"]) if "maxLength" in rule else ""
        return f"(?s)^.{{{int(rule.get('minLength', 0))},{longest}}}$"
    raise SchemaError(path)
