"""The messages of failures that no parameter of the request caused, the same over REST and gRPC."""

from __future__ import annotations

from typing import Final

INTERNAL_ERROR: Final = "The server had an error while processing your request. Sorry about that!"
OVERLOADED: Final = "The engine is currently overloaded, please try again later"
INVALID_API_KEY: Final = "Incorrect API key provided."


def too_many_wrong_keys(retry_after_ms: int) -> str:
    return (
        "Too many incorrect API keys were provided from your address. Please try again in "
        f"{-(-retry_after_ms // 1000)}s."
    )
