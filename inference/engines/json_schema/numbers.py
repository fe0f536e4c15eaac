"""Numbers in JSON Schemas that llguidance rounds, or for which it needs minutes."""

from __future__ import annotations

from decimal import Decimal
from math import lcm
from typing import Any, Final

from inference.engines.json_schema.errors import Path, SchemaError

BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_LARGEST_INTEGER: Final = 2**53
# The grammar has a state for each remainder. With more of them it takes seconds to compile, and
# the library gives up in the middle of an answer.
_MOST_REMAINDERS: Final = 5000


def check_numbers(value: Any, path: Path) -> None:
    """Refuses numbers that the grammar would round."""
    if isinstance(value, list):
        for inner in value:
            check_numbers(inner, path)
    elif isinstance(value, dict):
        for inner in value.values():
            check_numbers(inner, path)
    elif isinstance(value, (int, float)) and not abs(value) <= _LARGEST_INTEGER:
        raise SchemaError(path, "has a number beyond 2**53")


class Multiples:
    """The values of `multipleOf` in one schema."""

    def __init__(self) -> None:
        self._merged: list[Decimal] = []

    def check(self, value: float, path: Path, merged: bool) -> None:
        """Refuses one that needs too many states; merged ones may apply to one number together."""
        values = [Decimal(str(value))]
        if merged:
            values += self._merged
            self._merged = values
        places = max(_places(one) for one in values)
        if lcm(*(int(one.scaleb(places)) for one in values)) > _MOST_REMAINDERS:
            why = f"needs more than {_MOST_REMAINDERS} remainders"
            raise SchemaError(path, why)


class Bounds:
    """The bounds of numbers in one schema."""

    def __init__(self) -> None:
        self._merged: dict[str, list[float]] = {}

    def check(self, node: dict[str, Any], path: Path, merged: bool) -> None:
        """Refuses excluded integers with another bound near: llguidance would allow the integer."""
        found: dict[str, list[float]] = {
            key: [node[key]] for key in BOUNDS if node.get(key, False) is not False
        }
        if not found:
            return
        if merged:
            for key, values in self._merged.items():
                found[key] = [*found.get(key, ()), *values]
            self._merged = found
        values = [value for inner in found.values() for value in inner if value is not True]
        for key in ("exclusiveMinimum", "exclusiveMaximum"):
            near = (a == int(a) and 0 < abs(a - b) < 1 for a in values for b in values)
            if key in found and any(near):
                raise SchemaError((*path, key), "excludes an integer beside a bound that is near")


def _places(value: Decimal) -> int:
    """The number of digits behind the decimal point."""
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
