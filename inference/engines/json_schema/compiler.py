"""A JSON Schema as a grammar that enforces all of it, and as a validator of the finished answer.

llguidance makes the grammar. It refuses what it cannot express, with five exceptions, for which the
schema is rewritten to an equivalent or a narrower one:

    a name of `additionalProperties` may spell a declared   the other names become a pattern, which
    name with escapes ("\\u0061" for "a")                    is compared with the decoded name
    the same other name may come twice                      `minProperties` is limited
    integers beyond 2**53 are rounded                       refused; bounds end there
    an excluded integer is allowed near another bound       see numbers.py
    regular expressions are Rust's                          see patterns.py

Keywords that have an equivalent are rewritten too; `rules.py` lists all keywords. The
grammar is narrower than the schema on purpose in three ways: properties have the schema's order,
there is no white space, and an object with `properties` and without `additionalProperties` gets no
other properties, because small models would add properties until the tokens run out.
docs/compatibility.md lists what else is narrower.
"""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass
from typing import Any, Final

import jsonschema_rs

from inference.engines.answer_check import SlowRule
from inference.engines.json_schema.errors import Path, SchemaError
from inference.engines.json_schema.grammars import compile_error
from inference.engines.json_schema.locations import Locations
from inference.engines.json_schema.meeting import IN_PLACE, OBJECT
from inference.engines.json_schema.numbers import EXCLUSIVE
from inference.engines.json_schema.patterns import none_of
from inference.engines.json_schema.rewriting import Rewriter
from inference.engines.json_schema.rules import DIALECTS, KEYWORDS, WITHOUT_VALUES
from inference.engines.json_schema.spelling import LATEST_WITH_LISTS, respelled, without_lookahead
from inference.engines.json_schema.visits import safe_depth

# The search for the place of a fault compiles each part of the schema; then it gives up.
_SEARCH_SECONDS: Final = 2.0
# The dialect of a schema that names none, as in vLLM.
_LATEST: Final = 2020
_MAX_DEPTH: Final = 64
_USUAL: Final = frozenset({"type", "properties", "required", "items"})


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """A schema whose grammar is known to compile.

    `grammar_schema` is its JSON for the grammar; `validator` checks finished answers, and is a
    SlowRule where that may take long.
    """

    grammar_schema: str
    validator: Any


@functools.lru_cache(maxsize=64)
def compile_schema(text: str) -> CompiledSchema:
    """Checks and rewrites a schema; raises SchemaError if its grammar would not enforce it all.

    Agents send the same tools again and again, so the last schemas are kept.
    """
    try:
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise SchemaError((), "must be an object")
        _check_depth(schema)
        schema = respelled(schema)
        locations = Locations(schema, DIALECTS.get(str(schema.get("$schema")), _LATEST))
        try:
            # What has become a definition is respelled now.
            return _compiled(respelled(locations.root) if locations.moved else locations.root)
        except SchemaError as error:
            raise SchemaError(locations.original(error.path), error.why) from error
    except RecursionError as error:
        raise SchemaError((), "is nested too deep") from error
    except (ValueError, OverflowError) as error:
        raise SchemaError((), "is no valid JSON") from error


def _compiled(schema: dict[str, Any]) -> CompiledSchema:
    _check_form(schema)
    rewriter = Rewriter(schema)
    rewritten = rewriter.whole()
    _check_patterns_of_names(rewriter)
    if error := compile_error(rewritten):
        raise _located(error, schema, rewritten, rewriter)
    validator = validator_of(schema)
    if (depth := safe_depth(schema)) is not None:
        validator = SlowRule("schema", json.dumps(schema), validator, depth)
    return CompiledSchema(json.dumps(rewritten, ensure_ascii=False), validator)


def _check_depth(schema: Any) -> None:
    # The libraries are recursive, and a stack that overflows would end the process.
    level = [schema]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise SchemaError((), f"is nested deeper than {_MAX_DEPTH} levels")


def _check_form(schema: dict[str, Any]) -> None:
    """Refuses what is no JSON Schema, by the standard's own schema of schemas."""
    dialect = schema.get("$schema", next(iter(DIALECTS)))
    if not isinstance(dialect, str) or dialect not in DIALECTS:
        raise SchemaError(("$schema",), "names a dialect that is not known")
    try:
        jsonschema_rs.meta.validate(schema)
        if DIALECTS[dialect] != 2020:
            # Keywords of later dialects are enforced too, so their values are checked as well.
            jsonschema_rs.meta.validate({**_without_flags(schema), "$schema": LATEST_WITH_LISTS})
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(tuple(error.instance_path), "is no valid JSON Schema") from error
    except ValueError as error:
        raise SchemaError((), "is no valid JSON Schema") from error


def _without_flags(node: Any) -> Any:
    """The schema without draft 4's `exclusiveMinimum: true`, which later drafts do not have."""
    if isinstance(node, list):
        return [_without_flags(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    flags = [key for key in EXCLUSIVE if isinstance(node.get(key), bool)]
    return {key: _without_flags(inner) for key, inner in node.items() if key not in flags}


def _check_patterns_of_names(rewriter: Rewriter) -> None:
    """Refuses patterns that match declared names only: the grammar would begin a further name."""
    for path, sent in rewriter.sent.items():
        if not sent.get("properties") or not sent.get("patternProperties"):
            continue
        others = none_of(sent["properties"])
        patterns = rewriter.visited[path]["patternProperties"]
        rests = [
            {"type": "string", "pattern": name, "allOf": [{"pattern": others}]} for name in patterns
        ]
        if all(map(compile_error, rests)):
            place = (*path, "patternProperties")
            raise SchemaError(place, "matches no names but those of 'properties'")


def validator_of(schema: dict[str, Any]) -> Any:
    """jsonschema-rs's validator of a schema; raises SchemaError."""
    try:
        return jsonschema_rs.validator_for(
            without_lookahead(schema),
            validate_formats=False,
            retriever=_refuse_to_fetch,
            # The other engine knows `(?=…)`, but its `\w`, `\d` and `\s` are not ECMA-262's.
            pattern_options=jsonschema_rs.RegexOptions(),
        )
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(tuple(error.instance_path), "cannot be checked") from error
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise SchemaError((), "cannot be checked") from error


def _refuse_to_fetch(uri: str) -> Any:
    raise ValueError(uri)


def _located(
    error: str, schema: dict[str, Any], root: dict[str, Any], rewriter: Rewriter
) -> SchemaError:
    """The innermost part of the schema that does not compile, and there the keyword at fault."""
    impossible = error.startswith("Unsatisfiable")
    why = "allows no value" if impossible else "cannot be enforced"
    shared: dict[str, Any] = {
        key: root[key] for key in ("$schema", "$defs", "definitions") if key in root
    }
    until = time.monotonic() + _SEARCH_SECONDS
    for path, part in rewriter.visited.items():
        if not isinstance(part, dict):
            continue
        if time.monotonic() > until:
            break
        whole = shared | part
        found = compile_error(whole)
        if not found or found.startswith("Unsatisfiable") != impossible:
            continue
        sent = rewriter.sent.get(path, part)
        # Blame a common keyword (_USUAL) only if removing no other one makes the part compile.
        for key in sorted(part, key=_USUAL.__contains__):
            if not path and key in shared:
                continue
            rest = {name: value for name, value in whole.items() if name != key}
            if not compile_error(rest) and (keyword := _sent(key, sent)):
                return SchemaError((*path, keyword), why)
        return SchemaError((*path, *_suspect(sent)), why)
    return SchemaError(_suspect(schema), why)


def _sent(key: str, node: dict[str, Any]) -> str | None:
    """The keyword of the client from which a rewritten one was made."""
    made_of = {
        "allOf": IN_PLACE,
        "patternProperties": ("additionalProperties", *OBJECT),
        "additionalProperties": OBJECT,
        "minimum": EXCLUSIVE,
        "maximum": EXCLUSIVE[1:],
    }
    if key in node or key not in made_of:
        return key
    return next((name for name in made_of[key] if name in node), None)


def _suspect(part: dict[str, Any]) -> Path:
    """The first of the keywords that apply together, or of those that restrict values."""
    restricting = (key for key in part if key in KEYWORDS - WITHOUT_VALUES)
    return next(((key,) for key in (*IN_PLACE, *OBJECT, *restricting) if key in part), ())
