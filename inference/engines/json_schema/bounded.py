"""A validator whose check ends: what may take years is checked in a process with a time limit.

parent -> child    the schema and the value, as a JSON array
child -> parent    its exit status
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from decimal import Decimal
from typing import Any, Final

from inference.engines.answer_check import fits

log = logging.getLogger(__name__)

# Processor time of one check.
_SECONDS: Final = 2
_INVALID: Final = 10


class BoundedValidator:
    """`validator` for values of at most `depth` levels, and a process for others.

    A value whose check does not end in time counts as valid, because the grammar has made it.
    """

    is_slow: Final = True

    def __init__(self, schema: dict[str, Any], validator: Any, depth: int) -> None:
        self._schema = schema
        self._validator = validator
        self._depth = depth

    def is_valid(self, value: Any) -> bool:
        if _levels(value) <= self._depth:
            return bool(self._validator.is_valid(value))
        asked = subprocess.run(  # noqa: S603
            [sys.executable, "-m", __name__],
            input=json.dumps([json.dumps(self._schema), json.dumps(value, default=_plain)]),
            text=True,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if asked.returncode not in (0, _INVALID):
            log.warning("the check of an answer took too long; its grammar alone has enforced it")
        return asked.returncode != _INVALID


def _levels(value: Any) -> int:
    level, count = [value], 0
    while level := [
        inner
        for part in level
        if isinstance(part, (dict, list))
        for inner in (part.values() if isinstance(part, dict) else part)
    ]:
        count += 1
    return count


def _plain(number: Decimal) -> float:
    largest = sys.float_info.max
    return max(-largest, min(largest, float(number)))


def main() -> None:
    """Checks one value; the limit of processor time may end the process."""
    from inference.engines.json_schema.compiler import validator_of

    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    schema, text = json.load(sys.stdin)
    sys.exit(0 if fits(text, validator_of(json.loads(schema))) else _INVALID)


if __name__ == "__main__":
    main()
