"""The input items of a response.

The docstrings are the descriptions in /openapi.json. Items of a response's output can be sent back
unchanged, also with the members that SDKs add: these are accepted without effect.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from contract.limits import MAX_MESSAGES, MAX_PARTS
from edge.openai.decoding.types import ABSENT, AnyJson, NotOffered, Strict, accepting

ItemStatus = Literal["in_progress", "completed", "incomplete"]
_Parts = Meta(max_length=MAX_PARTS)
# Members of calls and of their results.
_CALL: Final = ("caller", "async", "async_", "created_by", "parsed_arguments")


@accepting("prompt_cache_breakpoint", "cache_control")
class InputText(Strict, tag_field="type", tag="input_text"):
    """A piece of text."""

    text: str


@accepting("annotations", "logprobs", "parsed", "cache_control")
class OutputTextPart(Strict, tag_field="type", tag="output_text"):
    """A piece of text that the model wrote."""

    text: str


class OutputRefusalPart(Strict, tag_field="type", tag="refusal"):
    """A text in which the model declined to answer."""

    refusal: str


@accepting("prompt_cache_breakpoint", "cache_control")
class InputImage(Strict, tag_field="type", tag="input_image"):
    """An image; its URL must be a data: URL."""

    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None


@accepting("prompt_cache_breakpoint", "cache_control")
class InputFile(NotOffered, tag_field="type", tag="input_file"):
    """A file; not offered."""

    file_data: AnyJson = ABSENT
    file_id: AnyJson = ABSENT
    file_url: AnyJson = ABSENT
    filename: AnyJson = ABSENT
    detail: AnyJson = ABSENT


InputPart = InputText | InputImage | InputFile
MessagePart = InputPart | OutputTextPart | OutputRefusalPart


class InputMessage(Strict, tag_field="type", tag="message"):
    """A message; `type` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[MessagePart], _Parts]

    # Accepted without effect.
    id: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


@accepting(*_CALL)
class InputFunctionCall(Strict, tag_field="type", tag="function_call"):
    """A call of a function in the conversation so far."""

    call_id: str
    name: str
    arguments: str
    namespace: str | None = None

    # Accepted without effect.
    id: str | None = None
    status: ItemStatus | None = None


@accepting(*_CALL)
class InputCustomCall(Strict, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool in the conversation so far."""

    call_id: str
    name: str
    input: str
    namespace: str | None = None

    # Accepted without effect.
    id: str | None = None
    status: ItemStatus | None = None


@accepting("caller", "created_by", "name", "namespace")
class InputFunctionOutput(Strict, tag_field="type", tag="function_call_output"):
    """The result of a call."""

    call_id: str
    output: str | Annotated[list[InputPart], _Parts]

    # Accepted without effect.
    id: str | None = None
    status: ItemStatus | None = None


@accepting("caller", "created_by", "name", "namespace")
class InputCustomOutput(Strict, tag_field="type", tag="custom_tool_call_output"):
    """The result of a call of a custom tool."""

    call_id: str
    output: str | Annotated[list[InputPart], _Parts]

    # Accepted without effect.
    id: str | None = None
    status: ItemStatus | None = None


class ReasoningText(Strict):
    """A piece of the model's reasoning."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(Strict):
    """A piece of a summary of the model's reasoning."""

    type: Literal["summary_text"]
    text: str


class InputReasoning(Strict, tag_field="type", tag="reasoning"):
    """The model's reasoning in the conversation so far: its content, else its summary."""

    content: Annotated[list[ReasoningText], _Parts] | None = None
    summary: Annotated[list[SummaryText], _Parts] | None = None

    # Accepted without effect.
    id: str | None = None
    status: ItemStatus | None = None
    encrypted_content: str | None = None


class ItemReference(Strict, tag_field="type", tag="item_reference"):
    """A reference to an item of a kept response; refused where none are kept."""

    id: str


InputCall = InputFunctionCall | InputCustomCall
InputOutput = InputFunctionOutput | InputCustomOutput
InputItem = InputMessage | InputReasoning | InputCall | InputOutput | ItemReference
InputItems = Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
