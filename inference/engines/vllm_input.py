"""The input of a request as tokens for vLLM's engine, with the parsing of its output.

A chat becomes tokens in four steps:

1. `chat_request` translates it to vLLM's ChatCompletionRequest (see vllm_chat).
2. vLLM's renderer fills the model's chat template, tokenizes it and prepares images and audio.
   Its tool parser may change the request first: it adds the grammar of forced or strict tool calls
   to the rule for the output, and may need special tokens in the text.
3. If a tool or reasoning parser is needed, `Parsing` gets a factory of parsers for the choices.
4. vLLM's arguments for reasoning are derived: a grammar applies only after the reasoning, so vLLM
   must know whether the prompt has already ended it.

Text is tokenized as it is; text with a suffix is put into the model's fill-in-the-middle form;
token ids are used unchanged. vLLM's engine reuses the attention keys and values of equal prompt
prefixes, also between callers; a `cache_salt` limits this to requests with the same salt.

    refused                                          reason
    a chat, if the model has no chat template        model_not_capable
    a chat that the template raises on               invalid `messages`; the exception's text may
                                                     hold the chat and is not logged
    text with too many characters for the context    the context error, before any tokenization:
                                                     no token has more than `max_chars_per_token`
    token ids outside the vocabulary                 invalid `prompt`; in vLLM they would end the
                                                     engine core, and with it all requests
    a suffix, if the model has no such form          unsupported_parameter
    a prompt without tokens                          invalid `prompt`

An empty text starts from the tokenizer's beginning-of-text token, or, if it has none, from its
end-of-text token, which separates documents in training: the model begins a new document.

`prepare` compares the number of tokens with the context, with the caller's own limit.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm.renderers import TokenizeParams
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import StructuredOutputsParams

from contract.refusals import unsupported_by_model
from inference.engines.call_forms import form_of, leaves_no_call, reads_by_phases, without_calls
from inference.engines.vllm_call_repair import repair_of
from inference.engines.vllm_chat import RenderableChat, echoed_message
from inference.engines.vllm_constraints import RuleTranslator
from inference.engines.vllm_errors import invalid
from inference.engines.vllm_logprobs import Vocabulary
from inference.engines.vllm_parsing import Parsing
from inference.engines.vllm_rendering import InputRenderer
from inference.errors import InferenceError, check_vocabulary
from inference.truncation import cut, side_name
from isthmus.v1 import chat_pb2
from isthmus.v1.generate_pb2 import GenerateRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered and tokenized input.

    Attributes:
        engine_input, reasoning: Arguments of AsyncLLM.generate.
        rule: The rule for the output, with the grammar of tool calls; None for free output.
        skip_special_tokens: False also if a parser needs them in the text.
        parsing, echo, echo_pieces: As in OutputPlan.
    """

    engine_input: Any
    token_ids: list[int]
    rule: StructuredOutputsParams | None
    skip_special_tokens: bool
    parsing: Parsing | None = None
    reasoning: dict[str, Any] = field(default_factory=dict)
    echo: str = ""
    echo_pieces: Sequence[bytes] = ()


class PromptRenderer:
    """Renders all kinds of input with the running engine's renderer and parsers.

    Attributes:
        inputs: Renders and tokenizes, without what a generation needs beside its tokens.
        fills_gaps: Whether the model has a form for text with a suffix.
    """

    def __init__(self, renderer: OnlineRenderer, vocabulary: Vocabulary) -> None:
        self.inputs = InputRenderer(renderer)
        self._vocabulary = vocabulary
        self._online = renderer
        self._renderer = renderer.renderer
        self._config = renderer.model_config
        self.fills_gaps = self._renderer.render_completion_suffix("a", "b") is not None
        self._text_parser = renderer.parser and without_calls(renderer.parser)
        self._rules = RuleTranslator(self._renderer.get_tokenizer())

    async def probe_chat(self) -> bool:
        """Renders a chat to find out whether the model has a chat template."""
        chat = chat_pb2.ChatInput()
        chat.messages.add(role=chat_pb2.ROLE_USER).parts.add(text="Hello")
        try:
            await self.render_chat(GenerateRequest(chat=chat), None, True)
        except InferenceError as error:
            return error.reason != "model_not_capable"
        return True

    async def render_chat(
        self, request: GenerateRequest, rule: StructuredOutputsParams | None, skip_special: bool
    ) -> Prompt:
        """Renders a request with a chat; raises InferenceError if the model cannot take it.

        `rule` is the rule for the output. `skip_special` leaves special tokens out of the text.
        """
        tool_parser = getattr(self._online.parser, "tool_parser_cls", None)
        chat, engine_input = await self.inputs.chat(
            request.chat,
            rule=rule,
            skip_special_tokens=skip_special,
            cache_salt=request.cache_salt if request.HasField("cache_salt") else None,
            answer_tokens=request.stopping.max_tokens,
        )
        written = chat.extract_structured_outputs()  # Rendering has added the grammar of calls.
        is_text = chat.tool_choice in ("auto", "none") and leaves_no_call(rule, request.chat)
        if is_text:
            chat.tool_choice, written = "none", rule
        elif chat.tools and repair_of(tool_parser).special:
            chat.skip_special_tokens = False
        tokenizer, parser = self._renderer.get_tokenizer(), self._online.parser
        skipped = tokenizer.all_special_tokens if chat.skip_special_tokens else ()
        form = form_of(written, request.chat, parser, skipped) if self._rules.guided else None
        reads_calls = form is None and not (is_text and reads_by_phases(parser))
        token_ids: list[int] = engine_input["prompt_token_ids"]
        prompt = Prompt(
            engine_input=engine_input,
            token_ids=token_ids,
            rule=await self._translated(written, request),
            skip_special_tokens=chat.skip_special_tokens,
            echo=echoed_message(request.chat) if request.output.echo else "",
        )
        if not self._needs_parser(chat):
            return prompt
        stopping = request.stopping
        parsing = Parsing(
            new_parser=functools.partial(self._new_parser, chat, reads_calls=reads_calls),
            chat=chat,
            prompt_ids=token_ids,
            text_lags=bool(stopping.strings) and not stopping.include_stop_string,
            form=form,
        )
        return replace(prompt, parsing=parsing, reasoning=self._reasoning(chat, token_ids))

    async def render_text(
        self,
        request: GenerateRequest,
        rule: StructuredOutputsParams | None,
        skip_special: bool,
        kept: int | None = None,
    ) -> Prompt:
        """Renders a request with text or token ids; see `render_chat`.

        `kept` is the number of tokens that a longer prompt is cut to; None if it must not be cut.
        """
        prompt = self._prompt(request, kept)
        engine_input = await self.inputs.prompt(
            prompt,
            # None for no limit: `prepare` compares the length with the context.
            TokenizeParams(
                max_total_tokens=None,
                truncate_prompt_tokens=kept,
                truncation_side=side_name(request.truncation_side),
            ),
            request.cache_salt if request.HasField("cache_salt") else None,
        )
        token_ids: list[int] = engine_input["prompt_token_ids"]
        rendered = Prompt(
            engine_input=engine_input,
            token_ids=token_ids,
            rule=await self._translated(rule, request),
            skip_special_tokens=skip_special,
            # Text has no reasoning before the output to which the rule applies.
            reasoning={"reasoning_ended": True} if rule else {},
        )
        if not request.output.echo:
            return rendered
        echo, pieces = await asyncio.to_thread(self._echo, request, token_ids)
        return replace(rendered, echo=echo, echo_pieces=pieces)

    def _prompt(self, request: GenerateRequest, kept: int | None) -> Any:
        """The text or the token ids for vLLM, cut as far as that needs no tokenizer."""
        side = request.truncation_side
        prompt: Any = request.text
        if kept is not None:
            # Text that is sure to be cut is not tokenized.
            longest = kept * self._renderer.get_tokenizer().max_chars_per_token
            prompt = cut(request.text, longest, side)
        if request.HasField("token_ids"):
            ids = list(request.token_ids.ids)
            if kept is not None:
                ids = cut(ids, kept, side)
            # An id past the end of the model's embedding table would end the engine core.
            check_vocabulary(ids, self._config.get_vocab_size(), "prompt")
            prompt = {"prompt_token_ids": ids}
        if request.HasField("suffix"):
            prompt = self._with_suffix(request)
        elif not prompt:
            prompt = {"prompt_token_ids": self.inputs.beginning()}
        if kept is None:
            count, wanted = len(request.text) + len(request.suffix), request.stopping.max_tokens
            self.inputs.check_length(count, wanted, chat=False)
        return prompt

    async def _translated(
        self, rule: StructuredOutputsParams | None, request: GenerateRequest
    ) -> StructuredOutputsParams | None:
        if rule is None and not request.chat.tools:
            return None
        return await asyncio.to_thread(self._rules.translate, rule, request)

    def _echo(self, request: GenerateRequest, token_ids: list[int]) -> tuple[str, Sequence[bytes]]:
        """The prompt's text, special tokens included, and the part of each token in it."""
        text = str(request.text)
        if request.HasField("token_ids") or request.HasField("truncate_prompt_tokens"):
            text = str(self._renderer.get_tokenizer().decode(token_ids))
        if not request.output.HasField("prompt_logprobs"):
            return text, ()
        pieces = self._vocabulary.pieces(token_ids, text)
        return b"".join(pieces).decode("utf-8", "replace"), pieces

    def _with_suffix(self, request: GenerateRequest) -> Any:
        if request.HasField("token_ids"):
            raise invalid("suffix", "it is only allowed when 'prompt' is a text.")
        rendered = self._renderer.render_completion_suffix(request.text, request.suffix)
        if rendered is None:
            raise InferenceError.of(unsupported_by_model("suffix"))
        return rendered

    def _needs_parser(self, chat: RenderableChat) -> bool:
        parser = self._online.parser
        if parser is None:
            return False
        return (
            bool(chat.tools)
            or parser.reasoning_parser_cls is not None
            or parser.always_adjust_request
            or self._online.use_harmony
        )

    def _new_parser(self, chat: RenderableChat, *, reads_calls: bool = True) -> Any:
        parser = self._online.parser if reads_calls else self._text_parser
        return parser(
            self._renderer.get_tokenizer(),
            chat.tools,
            model_config=self._config,
            chat_template_kwargs=self._online.effective_chat_template_kwargs(chat),
        )

    def _reasoning(self, chat: RenderableChat, token_ids: list[int]) -> dict[str, Any]:
        parser = self._new_parser(chat)
        arguments: dict[str, Any] = {
            "reasoning_ended": chat.resolve_reasoning_ended(parser, token_ids)
        }
        if parser.reasoning_parser is not None:
            template = self._online.effective_chat_template_kwargs(chat)
            arguments["reasoning_parser_kwargs"] = {"chat_template_kwargs": template}
        return arguments
