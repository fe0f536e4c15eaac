"""Limits that the edge and the inference service both check.

The inference service decides: it protects the engine, whichever face a request comes by. The edge
checks the same limits to refuse early, before a request costs a call. Limits of one side alone
stand there; ranges of single parameters stand in the proto files (parameters.py).
"""

from __future__ import annotations

from typing import Final

# Chats: messages; content parts of one message; content parts and tool calls of all messages, each
# of which becomes an object of the engine's; tools; images of all messages, and bytes of one.
MAX_MESSAGES: Final = 2048
MAX_PARTS: Final = 1024
MAX_ALL_PARTS: Final = 4096
MAX_TOOLS: Final = 128
MAX_CHAT_IMAGES: Final = 16
MAX_CHAT_IMAGE_BYTES: Final = 10 * 1024 * 1024
# Bytes of a JSON Schema, a regular expression, a grammar, or all choices together.
MAX_SCHEMA_BYTES: Final = 64 * 1024
# Entries of logit_bias and of a list of choices.
MAX_LIST: Final = 1024

# Inputs of an embeddings request, and tokens of all of them together.
MAX_INPUTS: Final = 2048
MAX_INPUT_TOKENS: Final = 300_000

# Images: characters of a prompt, images of one request, previews of each, denoising steps.
MAX_PROMPT_CHARACTERS: Final = 32_000
MAX_IMAGES: Final = 10
MAX_PARTIAL_IMAGES: Final = 3
MAX_STEPS: Final = 150
MAX_GUIDANCE_SCALE: Final = 50
