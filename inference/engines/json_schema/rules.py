"""The tables of JSON Schema's keywords: enforced by the grammar, without effect, or refused."""

from __future__ import annotations

from typing import Any, Final

# llguidance's grammar enforces these, in every combination that it accepts.
ENFORCED: Final = frozenset(
    {
        *("$ref", "$defs", "$anchor", "$id", "$schema"),
        *("type", "enum", "const", "allOf", "anyOf"),
        *("properties", "patternProperties", "additionalProperties", "required"),
        *("items", "prefixItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)
# Enforced in the forms that json_schema.py can express with the keywords above; 400 otherwise.
IN_SOME_FORMS: Final = {
    "oneOf": "no value can match two branches: their types differ, a property has different "
    "values, or what one requires can be forbidden in the other",
    "dependentRequired": "always",
    "dependentSchemas": "always",
    "propertyNames": "`enum`, `const`, `pattern`, lengths, or the `format` `date` or `uuid`, and "
    "no `patternProperties` beside it",
    "unevaluatedProperties": "alone; or `false` beside `allOf`, `$ref` and one of `anyOf` and "
    "`oneOf`, in which no property depends on another and there is no `patternProperties`",
    "unevaluatedItems": "no `allOf`, `anyOf`, `oneOf` or `$ref` beside it",
    "minProperties": "at most one more than `required` has",
    "maxProperties": "every property in `properties` is required, or it is 0 or 1",
    "multipleOf": "at most 5000, without its decimal point; so is the least common multiple of "
    "those that are merged",
    "uniqueItems": "`false`, or `maxItems` is at most 1, or the items are of an `enum`, a `const`, "
    "booleans or integers with bounds, and at most 2000 arrays are possible",
    "contains": "`minContains` is 0 and there is no `maxContains`, since draft 2019-09",
    "minContains": "as `contains`",
    "maxContains": "without `contains`, where it has no meaning",
    "not": "of `type`, `enum`, `const`, `required`, `properties`, bounds and lengths, and of these "
    "in `allOf`, `anyOf` and `not`; beside an `enum`, of anything",
    "if": "as `not`; or without `then` and `else`, where it has no meaning",
    "then": "with such an `if`; or without one, where it has no meaning",
    "else": "as `then`",
    "format": "the formats below; other formats are advice",
}
# With some more, the library gives up at the beginning of the object.
MOST_OPTIONAL: Final = 450
REFUSED: Final = frozenset({"$dynamicRef"})
# No effect on the answer, as the standard says. So has any name that is no keyword.
ADVICE: Final = frozenset(
    {
        *("$comment", "$vocabulary", "$dynamicAnchor"),
        *("title", "description", "default", "deprecated", "readOnly", "writeOnly", "examples"),
        *("contentEncoding", "contentMediaType", "contentSchema"),
    }
)
# Keywords of earlier drafts.
OLD_ENFORCED: Final = frozenset({"definitions", "dependencies", "additionalItems", "id"})
OLD_REFUSED: Final = frozenset({"$recursiveRef"})

# Keywords whose value is a schema, a list of schemas, or an object of schemas.
ONE_SCHEMA: Final = frozenset(
    {
        *("items", "additionalItems", "unevaluatedItems", "contains"),
        *("additionalProperties", "unevaluatedProperties", "propertyNames"),
        *("not", "if", "then", "else"),
    }
)
LISTED: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
NAMED: Final = frozenset(
    {
        *("properties", "patternProperties", "dependentSchemas", "dependencies"),
        *("$defs", "definitions"),
    }
)
KEYWORDS: Final = ENFORCED | IN_SOME_FORMS.keys() | REFUSED | ADVICE | OLD_ENFORCED | OLD_REFUSED
# Keywords that restrict no values by themselves: advice, names, definitions, and those that only
# act through another keyword (`then` through `if`, `minContains` through `contains`).
WITHOUT_VALUES: Final = ADVICE | {
    *("$id", "$anchor", "$schema", "$defs", "definitions", "id"),
    *("then", "else", "minContains", "maxContains"),
}

FORMATS: Final = frozenset(
    {
        *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6"),
        *("uuid", "uri"),
    }
)
_LEAP_YEAR: Final = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
# 29 February exists in leap years only. Most languages have no year 0, so it is left out.
_DATE: Final = (
    "^((000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
    f"-((0[13-9]|1[0-2])-[0-9]{{2}}|02-([01][0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
# A label of a host name. Those with "--" behind the second letter are reserved.
_LABEL: Final = "([^.]{1,3}|[^.]{2}([^.-][^.]|-[^.-])[^.]{0,59})"
_DAYS_OF_MONTHS: Final = (
    "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
)
# Patterns of names of properties for formats that maps have as keys.
OF_NAMES: Final = {
    "date": f"^((000[1-9]|00[1-9][0-9]|0[1-9][0-9]{{2}}|[1-9][0-9]{{3}})-{_DAYS_OF_MONTHS}"
    f"|{_LEAP_YEAR}-02-29)$",
    "uuid": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
}
# Patterns for formats of which llguidance allows invalid texts. A leap second ends a day in UTC
# only, which a grammar cannot tell, so it is left out.
NARROWED: Final = {
    "email": ["^[^@]*@.{1,253}$", rf"^[^@]{{1,64}}@({_LABEL}\.)*{_LABEL}$"],
    "hostname": ["^.{1,253}$", rf"^({_LABEL}\.)*{_LABEL}$"],
    "time": ["^.{6}[0-5]"],
    "date-time": ["^.{17}[0-5]", _DATE],
    "date": [_DATE],
}
DIALECTS: Final = {
    "https://json-schema.org/draft/2020-12/schema": 2020,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "http://json-schema.org/draft-07/schema": 7,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-04/schema": 4,
}
DRAFT_4: Final = 4
# The last dialect in which what stands beside a `$ref` means nothing.
LATEST_WITH_IGNORED: Final = 7


def is_refused(node: dict[str, Any], key: str, dialect: int) -> bool:
    """Whether a keyword that is enforced in some forms only has another form here."""
    match key:
        case "properties":
            return len(set(node[key]) - set(node.get("required", ()))) > MOST_OPTIONAL
        case "const":
            return dialect == DRAFT_4  # It has no such keyword.
        case "contains":
            return dialect < 2019 or node.get("minContains", 1) != 0 or "maxContains" in node
    return False
