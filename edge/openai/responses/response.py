"""POST /v1/responses: the response as it grows, and as one document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from edge.openai import errors
from edge.openai.errors import OpenAIError
from edge.openai.responses.custom_input import input_of
from edge.openai.responses.output_schema import (
    IncompleteDetails,
    IncompleteReason,
    InputTokensDetails,
    OutputCustomCall,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputReasoningText,
    OutputText,
    OutputTokensDetails,
    Response,
    ResponseFailure,
    ResponseUsage,
)
from edge.openai.responses.tools import Tools
from edge.openai.text.blocks import Block, Blocks, Kind, NoWriter
from edge.openai.text.logprobs import chat_logprobs
from edge.openai.text.translator import (
    Identity,
    TextDocument,
    TextOptions,
    UsageSum,
    admission,
    encode,
)
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    GenerateResponse,
)
from isthmus.v1.usage_pb2 import Admitted

ID_PREFIX: Final = "resp_"
_INCOMPLETE: Final[dict[int, IncompleteReason]] = {
    FINISH_REASON_LENGTH: "max_output_tokens",
    FINISH_REASON_CONTENT_FILTER: "content_filter",
}
# Codes that a failed response keeps, because OpenAI's clients handle them; see `failed` for others.
_FAILURE_CODES: Final = frozenset(
    {"context_length_exceeded", "insufficient_quota", "rate_limit_exceeded"}
)
_ID_PREFIXES: Final = {Kind.REASONING: "rs_", Kind.TEXT: "msg_", Kind.CALL: "fc_"}
_CUSTOM_ID_PREFIX: Final = "ctc_"


class ResponseOptions(TextOptions, frozen=True, gc=False, kw_only=True):
    """Parameters that decide how a response is written.

    Attributes:
        blank: The response before it begins: without id, time, output and end.
        tools: How calls are given back.
        top_logprobs: Alternatives of each token; None if there are no log probabilities.
        keep: Called with the whole response; None if it is not kept.
    """

    blank: Response
    tools: Tools
    top_logprobs: int | None = None
    keep: Callable[[Response], None] | None = None


class ResponseState:
    """One response as it grows; the document and the stream write it.

    Args:
        options: How it is written.
        identity: Its id and time.
        blocks: Its output.
    """

    def __init__(self, options: ResponseOptions, identity: Identity, blocks: Blocks) -> None:
        self.options = options
        self.usage = UsageSum()
        self._identity = identity
        self._blocks = blocks
        self._item_id = identity.completion_id.removeprefix(ID_PREFIX)
        self._seconds = 0

    def count(self, part: GenerateResponse) -> None:
        """Adds the usage of a message."""
        if part.HasField("usage"):
            self.usage.add(part.usage)
            self._seconds = int(part.timings.total_ms // 1000)

    def id_of(self, block: Block) -> str:
        """The id of an item."""
        prefix = _ID_PREFIXES[block.kind]
        if block.kind is Kind.CALL and self.options.tools.called(block.name).custom:
            prefix = _CUSTOM_ID_PREFIX
        return f"{prefix}{self._item_id}_{block.index}"

    def item(self, block: Block, status: str) -> OutputItem:
        """An item; without content while it is in progress."""
        begun = status == "in_progress"
        item_id = self.id_of(block)
        if block.kind is Kind.TEXT:
            content = [] if begun else [self.output_text(block)]
            return OutputMessage(id=item_id, status=status, content=content)
        if block.kind is Kind.REASONING:
            texts = [] if begun else [OutputReasoningText(text=block.text)]
            return OutputReasoning(id=item_id, status=status, content=texts)
        called = self.options.tools.called(block.name)
        namespace = UNSET if called.namespace is None else called.namespace
        if called.custom:
            return OutputCustomCall(
                id=item_id,
                status=status,
                call_id=block.call_id,
                name=called.name,
                namespace=namespace,
                input="" if begun else input_of(block.text),
            )
        return OutputFunctionCall(
            id=item_id,
            status=status,
            call_id=block.call_id,
            name=called.name,
            namespace=namespace,
            arguments="" if begun else block.text,
        )

    def output_text(self, block: Block) -> OutputText:
        """The content of a message, with its log probabilities if they are wanted."""
        top = self.options.top_logprobs
        if top is None:
            return OutputText(text=block.text)
        logprobs = [each for some in block.logprobs for each in chat_logprobs(some, top)]
        return OutputText(text=block.text, logprobs=logprobs)

    def begun(self) -> Response:
        """The response before its output."""
        return replace(
            self.options.blank,
            id=self._identity.completion_id,
            created_at=self._identity.created,
        )

    def ended(self) -> Response:
        """The whole response.

        Raises:
            OpenAIError: 500, the output never finished.
        """
        finish = self._blocks.finish
        if finish is None:
            raise errors.internal_error()
        reason = _INCOMPLETE.get(finish.reason)
        response = replace(
            self.begun(),
            status="completed" if reason is None else "incomplete",
            completed_at=self._identity.created + self._seconds,
            incomplete_details=None if reason is None else IncompleteDetails(reason),
            output=self._output(),
            usage=self._usage(),
        )
        if self.options.keep is not None:
            self.options.keep(response)
        return response

    def failed(self, error: OpenAIError) -> Response:
        """The response with what it has until a failure."""
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        if error.code is not None and error.code in _FAILURE_CODES:
            code = error.code
        return replace(
            self.begun(),
            status="failed",
            error=ResponseFailure(code, error.message),
            output=self._output(),
        )

    def _output(self) -> list[OutputItem]:
        ended = self._blocks.finish is not None
        last = len(self._blocks.blocks) - 1
        return [
            self.item(
                block,
                "completed" if block.complete and (ended or block.index < last) else "incomplete",
            )
            for block in self._blocks.blocks
        ]

    def _usage(self) -> ResponseUsage:
        total = self.usage.total()
        return ResponseUsage(
            input_tokens=total.prompt_tokens,
            input_tokens_details=InputTokensDetails(total.prompt_tokens_details.cached_tokens),
            output_tokens=total.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                total.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=total.total_tokens,
        )


class ResponseDocument(TextDocument[ResponseOptions]):
    """The document of one response, which has one source."""

    def __init__(self, options: ResponseOptions, identity: Identity) -> None:
        super().__init__(options, identity)
        self._blocks = Blocks(NoWriter())
        self._state = ResponseState(options, identity, self._blocks)

    def source(self, _number: int) -> ResponseDocument:
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        return admission(part)

    def text(self, text: str) -> bytes:
        return self._blocks.text(text)

    def part(self, part: GenerateResponse) -> bytes:
        self._state.count(part)
        return self._blocks.part(part)

    def document(self) -> bytes:
        return encode(self._state.ended())
