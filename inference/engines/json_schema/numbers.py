"""Numbers in JSON Schemas that llguidance rounds, or for which it needs minutes."""

from __future__ import annotations

from decimal import Decimal
from math import lcm
from typing import Any, Final

from inference.engines.json_schema.errors import Path, SchemaError

EXCLUSIVE: Final = ("exclusiveMinimum", "exclusiveMaximum")
BOUNDS: Final = ("minimum", "maximum", *EXCLUSIVE)
_LARGEST_INTEGER: Final = 2**53
_STEP: Final = 1e-6
# A bound of smaller magnitude is moved by _STEP, and any other by 1.
_LARGEST_WITH_STEPS: Final = 10**9
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


def check_bound(key: str, value: float, path: Path) -> None:
    """Refuses a bound beyond which all numbers are above 2**53, because the grammar rounds them."""
    outermost = value if "min" in key.lower() else -value
    if not isinstance(value, bool) and not outermost < _LARGEST_INTEGER:
        raise SchemaError(path, "leaves only numbers beyond 2**53")


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


def inclusive_bounds(node: dict[str, Any]) -> dict[str, float]:
    """The `minimum` and `maximum` that stand for the bounds of a schema.

    llguidance allows an excluded integer if another bound is near, so each excluded number becomes
    an inclusive bound _STEP inside of it. The numbers between are left out.

    Args:
        node: A schema, of which check_bound has accepted the bounds. Draft 4 has
            `exclusiveMinimum: true` beside `minimum`.
    """
    bounds: dict[str, float] = {}
    for key, exclusive, step, narrower in (
        ("minimum", "exclusiveMinimum", _STEP, max),
        ("maximum", "exclusiveMaximum", -_STEP, min),
    ):
        excluded = node.get(exclusive, False)
        found = []
        if key in node:
            bound = _exact(node[key])
            found.append(_inside(bound, step) if excluded is True else bound)
        if not isinstance(excluded, bool):
            found.append(_inside(_exact(excluded), step))
        if found:
            bounds[key] = narrower(found)
    return bounds


def _inside(number: float, step: float) -> float:
    return number + step if abs(number) < _LARGEST_WITH_STEPS else number + (1 if step > 0 else -1)


def _exact(number: float) -> float:
    return min(max(number, -_LARGEST_INTEGER), _LARGEST_INTEGER)


def _places(value: Decimal) -> int:
    """The number of digits behind the decimal point."""
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
