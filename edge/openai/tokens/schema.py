"""Parameters of POST /tokenize and POST /detokenize, and the types of their responses."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from contract.limits import MAX_TOKENS, MAX_TOOLS, ReasoningEffort
from edge.openai.chat.message_schema import Messages
from edge.openai.chat.schema import CustomTool, FunctionTool, ToolChoice
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import ABSENT, NullableObject, Strict, Text, TokenId

_ModelName = Annotated[str, Meta(min_length=1)]


@refuse(chat_template=[], mm_processor_kwargs=[b"{}"], media_io_kwargs=[b"{}"])
class TokenizationRequest(Refusing, kw_only=True):
    """The body of a tokenization: either `prompt` or `messages`."""

    prompt: str | None = None
    messages: Text | Messages | None = None
    model: _ModelName | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    # Parameters of a chat completion that change its prompt; allowed only with `messages`.
    tools: Annotated[list[FunctionTool | CustomTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    reasoning_effort: ReasoningEffort | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: NullableObject = ABSENT


class Tokenization(Struct, kw_only=True):
    """The tokens of a prompt; `max_model_len` is the context of the requested name."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizationRequest(Strict):
    """The body of a detokenization."""

    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]
    model: _ModelName | None = None


class Detokenization(Struct):
    """The text of tokens, special ones included."""

    prompt: str
