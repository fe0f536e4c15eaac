"""The special tokens and vector sizes of embedding models, and shorter vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.errors import InferenceError, below, invalid_value
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import TRUNCATION_SIDE_LEFT


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def vector_sizes(matryoshka: bool | list[int], config: Any, full: int) -> Sequence[int]:
    """The allowed dimensions: those that the model was trained for, and last the full length."""
    listed = getattr(config, "matryoshka_dimensions", None) or []
    if isinstance(matryoshka, list):
        listed = matryoshka
    if listed:
        return sorted({int(size) for size in listed if 0 < size <= full} | {full})
    if matryoshka or getattr(config, "is_matryoshka", False):
        return range(1, full + 1)
    return (full,)


def requested_dimensions(request: EmbedRequest, sizes: Sequence[int]) -> int:
    """The request's dimensions; by default the model's full length, the last of `sizes`.

    Raises InferenceError if the model has no vectors of this length.
    """
    dimensions, full = request.dimensions, sizes[-1]
    if not request.HasField("dimensions") or dimensions == full:
        return full
    if len(sizes) == 1:
        raise InferenceError(
            "unsupported_parameter",
            "This model does not support specifying dimensions.",
            param="dimensions",
        )
    if dimensions not in sizes:
        listed = f"one of {', '.join(map(str, sizes))}"
        rule = f"between 1 and {full}" if isinstance(sizes, range) else listed
        raise invalid_value(
            f"Invalid value for 'dimensions' = {dimensions}. Must be {rule}.", "dimensions"
        )
    return dimensions


def shorten(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The leading components of each row, normalised to length 1."""
    kept = vectors[:, :dimensions]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    return np.ascontiguousarray(kept / np.maximum(lengths, np.finfo(np.float32).tiny))


@dataclass(frozen=True, slots=True)
class Truncation:
    """The most tokens of an input, whether a longer one is cut, and which end is then kept.

    `prefix` and `suffix` are the special tokens at both ends, which are never cut.
    """

    limit: int
    cuts: bool
    keeps_end: bool
    prefix: Sequence[int]
    suffix: Sequence[int]

    @classmethod
    def of(
        cls, request: EmbedRequest, limit: int, prefix: Sequence[int], suffix: Sequence[int]
    ) -> Truncation:
        """Reads how to cut inputs to `limit` tokens or fewer; raises InferenceError."""
        kept = request.truncate_prompt_tokens
        if 0 < kept <= (special := len(prefix) + len(suffix)):
            raise below("truncate_prompt_tokens", special + 1, kept)
        return cls(
            limit=min(limit, kept) if kept > 0 else limit,
            cuts=request.truncate or kept != 0,
            keeps_end=request.truncation_side == TRUNCATION_SIDE_LEFT,
            prefix=prefix,
            suffix=suffix,
        )

    def cut(self, ids: Sequence[int]) -> list[int]:
        """Cuts an input that has more tokens than `limit`."""
        if self.keeps_end:
            kept = max(0, self.limit - len(self.prefix))
            return [*self.prefix, *ids[len(ids) - kept :]]
        return [*ids[: max(0, self.limit - len(self.suffix))], *self.suffix]
