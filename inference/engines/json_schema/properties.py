"""The properties of an object beyond those that it declares.

They become `additionalProperties`, or a pattern of names that stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference.engines.json_schema.errors import Path, SchemaError
from inference.engines.json_schema.names import (
    all_obey,
    check_names,
    is_plain,
    listed_names,
    pattern_of_names,
    set_others,
    without_advice,
)
from inference.engines.json_schema.patterns import ANY_TEXT, any_of, none_of


@dataclass(frozen=True, slots=True)
class OtherProperties:
    """What an object's schema says about properties that it does not declare.

    Attributes:
        node: The schema as the client sent it.
        path: Where it stands.
        key: Its keyword for other properties.
        others: The rewritten schema of that keyword; True without one.
        rule: The schema of all names; True without one.
        merged: Whether the object meets another schema.
    """

    node: dict[str, Any]
    path: Path
    key: str
    others: Any
    rule: Any
    merged: bool

    def write(self, out: dict[str, Any]) -> None:
        """Sets the keywords of the rewritten schema; raises SchemaError for what none enforces."""
        if names := self._names():
            self._list(names, out)
        else:
            self._open(self._pattern(), out)
        least = int(self.node.get("minProperties", 0))
        is_open = out.get("additionalProperties") is not False or "patternProperties" in out
        if is_open and least > len(set(self._required())) + 1:
            raise SchemaError((*self.path, "minProperties"))

    def _declared(self) -> list[str]:
        return list(self.node.get("properties", ()))

    def _required(self) -> list[str]:
        required = self.node.get("required", ())
        return required if isinstance(required, list) else []  # Draft 3 has a boolean.

    def _used(self) -> set[str]:
        return {*self._declared(), *self._required()}

    def _names(self) -> list[str]:
        """All names, if the schema lists them and declares none; empty otherwise."""
        names = listed_names(self.rule) or []
        if self._declared() or "patternProperties" in self.node:
            return []
        return names if self._used() <= set(names) else []

    def _list(self, names: list[str], out: dict[str, Any]) -> None:
        """Declares the listed names, so that none comes twice."""
        out["additionalProperties"] = False
        if self.others is not False:
            check_names(names, (*self.path, "propertyNames"))
            out["properties"] = dict.fromkeys(names, self.others)

    def _open(self, pattern: str | None, out: dict[str, Any]) -> None:
        """Admits the names of a pattern; None is for all names and "" for none."""
        declared, used = self._declared(), self._used()
        is_default = self.key not in self.node and not self.merged and "properties" in self.node
        if self.others is False:
            out["additionalProperties"] = False
        elif "patternProperties" in self.node:
            if self.others is not True:
                place = (*self.path, self.key)
                raise SchemaError(place, "cannot be enforced beside patternProperties")
            # Other names have no pattern of their own, so they are left out.
            out["additionalProperties"] = False
        elif pattern == "" or (pattern is None and is_default and used <= set(declared)):
            out["additionalProperties"] = False
        elif pattern is not None:
            set_others(out, pattern, self.others)
        elif used or self.merged:
            names = ANY_TEXT if self.others is True else none_of(declared)
            set_others(out, names, self.others)
        elif self.others is not True:
            out["additionalProperties"] = self.others

    def _pattern(self) -> str | None:
        """The pattern of the other names that `propertyNames` allows."""
        place = (*self.path, "propertyNames")
        if self.rule is True:
            return None
        if not is_plain(self.rule) or "patternProperties" in self.node:
            raise SchemaError(place)
        rule = without_advice(self.rule)
        if not rule:
            return None
        used = self._used()
        if not all_obey(rule, used):
            raise SchemaError(place)
        if self.others is False:
            return None
        if used and (self.others is not True or self.merged):
            raise SchemaError(place)
        if (listed := listed_names(rule)) is not None:
            # llguidance would allow a comma for a further name, and then no name.
            left = set(listed) - set(self._declared())
            return any_of(sorted(left)) if left else ""
        return pattern_of_names(rule, place)
