"""Refusals say what to change: the entry, the token, who asked for how many tokens, which model."""

from __future__ import annotations

from typing import Any

import pytest

from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack
from tests.contract.test_fault_parity import over_grpc

CHAT, COMPLETION, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
IMAGES = "/v1/images/generations"


@pytest.fixture
def transport() -> str:
    """Refusals do not depend on the transport."""
    return "session"


@pytest.fixture
async def stack(start_stack: StartStack) -> Stack:
    return await start_stack(TEXT, EMBEDDING, IMAGE)


async def message_of(stack: Stack, path: str, **parameters: Any) -> str:
    model = {EMBED: "scripted-embedding", IMAGES: "scripted-image"}.get(path, "scripted")
    async with stack.http.post(path, json={"model": model} | parameters) as response:
        assert response.status == 400
        return str((await response.json())["error"]["message"])


def chat(words: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x " * words}]}


@pytest.mark.parametrize(
    ("path", "parameters", "detail"),
    [
        (CHAT, chat(5000), "5001 tokens (5000 in the messages, 1 in the completion)"),
        (CHAT, chat(4096), "4097 tokens (4096 in the messages, 1 in the completion)"),
        (CHAT, chat(4000) | {"max_tokens": 100}, "4100 tokens (4000 in the messages, 100 in the"),
        (CHAT, chat(5000) | {"max_tokens": 100}, "5100 tokens (5000 in the messages, 100 in the"),
        (COMPLETION, {"prompt": "x " * 4090}, "4106 tokens (4090 in your prompt; 16 for the comp"),
        (COMPLETION, {"prompt": [7] * 4090}, "4106 tokens (4090 in your prompt; 16 for the comp"),
        (COMPLETION, {"prompt": ["x", "x " * 4090]}, "In 'prompt[1]': This model's maximum"),
        (EMBED, {"input": "x " * 5000}, "5000 tokens (5000 in your prompt; 0 for the completion)"),
        (EMBED, {"input": ["x", "x " * 5000]}, "5000 tokens (5000 in 'input[1]'; 0 for the comp"),
    ],
)
async def test_context_overflow_says_who_asked_for_how_many_tokens(
    stack: Stack, path: str, parameters: dict[str, Any], detail: str
) -> None:
    message = await message_of(stack, path, **parameters)
    assert "maximum context length is 4096 tokens" in message
    assert detail in message


@pytest.mark.parametrize(
    ("path", "parameters", "place"),
    [
        (COMPLETION, {"prompt": [1, 60_000, 70_000]}, "prompt[1]"),
        (COMPLETION, {"prompt": [[1], [2], [60_000]]}, "prompt[2][0]"),
        (COMPLETION, {"prompt": "x", "stop_token_ids": [1, 60_000]}, "stop_token_ids[1]"),
        (COMPLETION, {"prompt": "x", "allowed_token_ids": [60_000]}, "allowed_token_ids[0]"),
        (EMBED, {"input": [[1]] * 7 + [[1, 60_000]]}, "input[7][1]"),
    ],
)
async def test_unknown_token_is_named_with_the_size_of_the_vocabulary(
    stack: Stack, path: str, parameters: dict[str, Any], place: str
) -> None:
    message = await message_of(stack, path, **parameters)
    expected = f"Invalid value for '{place}': token 60000 is not in the vocabulary of 50000 tokens."
    assert message == expected


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(model="scripted", token_ids={"ids": [1, 60_000]}),
        EmbedRequest(model="scripted-embedding", inputs=[{"token_ids": {"ids": [1, 60_000]}}]),
    ],
)
async def test_unknown_token_is_named_over_grpc_too(stack: Stack, request_: Any) -> None:
    error = await over_grpc(stack.stub, request_)
    assert "[1]': token 60000 is not in the vocabulary of 50000 tokens" in str(error.details())


@pytest.mark.parametrize(
    ("path", "parameters", "by_model"),
    [
        (CHAT, chat(1) | {"audio": {"voice": "ash", "format": "wav"}}, False),
        (CHAT, chat(1) | {"prediction": {"type": "content", "content": "x"}}, False),
        (COMPLETION, {"prompt": "x", "use_beam_search": True}, False),
        (IMAGES, {"prompt": "x", "background": "transparent"}, False),
        # Models that can fill in text, and models whose configuration allows patterns.
        (COMPLETION, {"prompt": "x", "suffix": "y"}, True),
        (CHAT, chat(1) | {"structured_outputs": {"regex": "a"}}, True),
    ],
)
async def test_this_model_is_blamed_only_where_another_would_do(
    stack: Stack, path: str, parameters: dict[str, Any], by_model: bool
) -> None:
    message = await message_of(stack, path, **parameters)
    assert message.startswith("Unsupported parameter: '")
    assert message.endswith(
        "is not supported with this model." if by_model else "is not supported."
    )
