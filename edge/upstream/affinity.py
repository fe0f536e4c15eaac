"""Which replica has the beginning of a prompt in its cache: chosen by a hash, without memory.

Engines keep what they computed for the beginnings of prompts, each replica for itself. Text
requests that have a key in common go to the same replica, in every edge process. The key is, in
this order:

  what has it        key
  -----------------  ------------------------------------------------------------------------------
  the client says    `prompt_cache_key`, `session_id`, or the header x-session-id or session-id
  a chat             its system messages and the message after them, of each the beginning
  another prompt     its beginning

Every pair of key and engine has a weight, and the lightest is the first choice (rendezvous
hashing); of replicas that share it, as the fronts of a model do, the least busy. An engine that is
added takes only keys that become its own, and one that is removed gives away only its own. A
replica far above the mean is passed over, so that a key that many requests have in common does not
keep the other replicas idle (bounded loads).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

from isthmus.v1.chat_pb2 import ChatMessage, Role
from isthmus.v1.generate_pb2 import GenerateRequest

# The key of a conversation is made of at most so many messages, parts of each, and characters of
# each message.
_MESSAGES: Final = 8
_PARTS: Final = 4
_MESSAGE_CHARACTERS: Final = 4096
# The key of another prompt is made of at most so many characters or tokens. More of the text would
# differ in each turn of a conversation.
_PROMPT_CHARACTERS: Final = 1024
_PROMPT_TOKENS: Final = 256
# Calls in flight that a replica may have: this factor of the mean, and one more.
_BOUND: Final = 1.25


class Loaded(Protocol):
    """A replica, as far as the choice needs it."""

    @property
    def engine(self) -> str:
        """The name of its engine, which other replicas may share."""

    @property
    def outstanding(self) -> int:
        """Calls in flight."""


_LoadedT = TypeVar("_LoadedT", bound=Loaded)


def key_of(request: GenerateRequest, given: Callable[[], str] | None) -> bytes:
    """What a request has in common with others of the same beginning; empty if it has none.

    Args:
        request: The request.
        given: Returns what the client says belongs together, or ""; None says nothing.
    """
    said = given() if given is not None else ""
    texts = [said] if said else _beginning(request)
    if not any(texts):
        return b""
    # Requests of different salts share no cache.
    found = blake2b(digest_size=16, key=request.cache_salt.encode()[:64])
    for text in texts:
        found.update(text.encode(errors="surrogateescape"))  # aiohttp's headers may have them
        found.update(b"\0")
    return found.digest()


def choose(key: bytes, replicas: Sequence[_LoadedT]) -> tuple[_LoadedT, bool]:
    """The replica that gets a request of this key.

    Args:
        key: At most 64 bytes.
        replicas: One or more.

    Returns:
        The replica, and whether it is the first choice of the key.
    """
    calls = 1 + sum(replica.outstanding for replica in replicas)
    bound = math.ceil(_BOUND * calls / len(replicas)) + 1
    ranked = sorted(replicas, key=lambda replica: (_weight(key, replica), replica.outstanding))
    # The least busy of them is always below the bound.
    chosen = next(replica for replica in ranked if replica.outstanding < bound)
    return chosen, chosen is ranked[0]


def _weight(key: bytes, replica: Loaded) -> bytes:
    return blake2b(replica.engine.encode(), digest_size=8, key=key).digest()


def _beginning(request: GenerateRequest) -> list[str]:
    if not request.HasField("chat"):
        ids = request.token_ids.ids[:_PROMPT_TOKENS]
        return [str(ids) if ids else request.text[:_PROMPT_CHARACTERS]]
    texts = []
    for message in request.chat.messages[:_MESSAGES]:
        texts.append(_text_of(message))
        if message.role not in (Role.ROLE_SYSTEM, Role.ROLE_DEVELOPER):
            break
    return texts


def _text_of(message: ChatMessage) -> str:
    return "".join(part.text for part in message.parts[:_PARTS])[:_MESSAGE_CHARACTERS]
