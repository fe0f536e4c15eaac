"""Members that are known, change the answer, and are not offered: each is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Final

from msgspec import Struct

from edge.openai import errors
from edge.openai.schema import ABSENT

# Each with the values that ask for nothing beyond what happens anyway; so does null.
GENERATION: Final[Mapping[str, frozenset[bytes]]] = {
    "use_beam_search": frozenset({b"false"}),
    "length_penalty": frozenset({b"1", b"1.0"}),
    "watermarking": frozenset({b"false"}),
    "repetition_detection": frozenset(),
    "bad_words": frozenset({b"[]"}),
    "allowed_token_ids": frozenset(),
    "logprob_token_ids": frozenset(),
    "logits_processors": frozenset({b"[]"}),
    "thinking_token_budget": frozenset(),
    "truncate_prompt_tokens": frozenset(),
    # Says nothing without the member above.
    "truncation_side": frozenset({b'"left"', b'"right"'}),
    "spaces_between_special_tokens": frozenset({b"true"}),
    "prompt_embeds": frozenset(),
    "return_token_ids": frozenset({b"false"}),
    "return_tokens_as_token_ids": frozenset({b"false"}),
    "return_token_offsets": frozenset({b"false"}),
    "return_mm_kwargs": frozenset({b"false"}),
    "mm_payload": frozenset({b'"none"', b'"tensors"'}),
    "routed_experts_prompt_start": frozenset({b"0"}),
    "kv_transfer_params": frozenset(),
    "ec_transfer_params": frozenset(),
    "vllm_xargs": frozenset({b"{}"}),
}


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
                raise errors.unsupported_parameter(f"{at}{name}")
