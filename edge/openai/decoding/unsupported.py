"""Members that are known, change the answer, and are not offered: each is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from msgspec import Struct

from contract.refusals import unsupported_parameter
from edge.openai.decoding.types import ABSENT
from edge.openai.errors import OpenAIError


class Refusals:
    """Members that an object may have only with harmless values.

    Attributes:
        harmless: Each with the JSON texts that are let through; null always is.
    """

    def __init__(self, harmless: Mapping[str, frozenset[bytes]]) -> None:
        self.harmless = harmless
        # The first name keeps the getter's answer a tuple where there is one member only.
        self._members = attrgetter("__class__", *harmless)

    def check(self, value: Struct, at: str = "") -> None:
        """Raises a 400 for the first member that asks for something.

        Args:
            value: The object.
            at: Its path with a trailing dot; empty for the body.

        Raises:
            OpenAIError: 400 `unsupported_parameter`.
        """
        members = self._members(value)
        # Nearly every request has none of them.
        if members.count(ABSENT) == len(self.harmless):
            return
        for member, (name, harmless) in zip(members[1:], self.harmless.items(), strict=True):
            if member is not ABSENT and bytes(member) not in (b"null", *harmless):
                raise OpenAIError.of(unsupported_parameter(f"{at}{name}"))
