"""Limits of requests that edge and inference service both check.

The service checks them to protect an engine from every caller. The edge checks them while it reads
the JSON, so it refuses a large request without building a message. A limit that only one side
checks is defined in that side; the ranges of parameters are options of their proto fields
(contract/parameters.py).
"""

from __future__ import annotations

from typing import Final, Literal

# Entries of logit_bias and of a list of choices (structured_outputs.choice).
MAX_ENTRIES: Final = 1024
# Characters of a text in a list of texts (bad_words).
MAX_LISTED_CHARACTERS: Final = 1024
# An entry of logit_bias is at least -MAX_LOGIT_BIAS and at most MAX_LOGIT_BIAS.
MAX_LOGIT_BIAS: Final = 100
# Alternatives listed for each token.
MAX_LOGPROBS: Final = 20
MAX_BEST_OF: Final = 20

# Chats
MAX_MESSAGES: Final = 2048
# Content parts of one message.
MAX_PARTS: Final = 1024
# Content parts and tool calls of all messages together; the engine creates an object for each.
MAX_ALL_PARTS: Final = 4096
# Tools of one request, and tool calls of one message.
MAX_TOOLS: Final = 128
# Characters of the name of a tool, or of a JSON Schema.
MAX_NAME_CHARACTERS: Final = 64
# Images in all messages together.
MAX_CHAT_IMAGES: Final = 16
# Bytes of one image of a chat, decoded from base64.
MAX_CHAT_IMAGE_BYTES: Final = 10 * 1024 * 1024
# UTF-8 bytes of a JSON Schema, a pattern, or the description of a tool.
MAX_SCHEMA_BYTES: Final = 64 * 1024

# Embeddings
MAX_INPUTS: Final = 2048
# Tokens of all inputs together.
MAX_INPUT_TOKENS: Final = 300_000

# Tokenize
# Token ids to turn into text, and tokens of a counted prompt; a longer context raises both.
MAX_TOKENS: Final = 1 << 20

# Images
MAX_IMAGES: Final = 10
MAX_IMAGE_PROMPT_CHARACTERS: Final = 32_000
# Denoising steps.
MAX_STEPS: Final = 150
MAX_GUIDANCE_SCALE: Final = 50
# Previews of one image.
MAX_PARTIAL_IMAGES: Final = 3
# Percent, for JPEG and WebP.
MAX_QUALITY: Final = 100

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
