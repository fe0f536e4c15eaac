"""Chats, texts and tokens as what vLLM's engine takes, with the parsers that belong to them."""

from __future__ import annotations

import asyncio
import functools
import logging
from dataclasses import dataclass, field
from typing import Any

from vllm.entrypoints.generate.base.protocol import validate_cache_salt
from vllm.exceptions import VLLMClientError
from vllm.renderers import TokenizeParams
from vllm.renderers.chat_utils import ChatTemplateResolutionError
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import StructuredOutputsParams

from inference.engines.vllm_chat import RenderableChat, characters, chat_request
from inference.engines.vllm_errors import invalid, refused
from inference.engines.vllm_parsing import Parsing
from inference.errors import InferenceError
from inference.refusals import context_error
from isthmus.v1 import chat_pb2
from isthmus.v1.generate_pb2 import GenerateRequest, Stopping

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered and tokenized input.

    Attributes:
        engine_input: For AsyncLLM.generate.
        token_ids: The prompt's tokens.
        rule: What the output must look like; tools may have added to it.
        skip_special_tokens: Whether special tokens stay out of the text; parsers may need them.
        parsing: How choices are taken apart; None where nothing is to be parsed.
        reasoning: Further arguments of AsyncLLM.generate.
        echo: The text to begin each choice with.
    """

    engine_input: Any
    token_ids: list[int]
    rule: StructuredOutputsParams | None
    skip_special_tokens: bool
    parsing: Parsing | None = None
    reasoning: dict[str, Any] = field(default_factory=dict)
    echo: str = ""


class PromptRenderer:
    """Renders every kind of input with vLLM's own renderer.

    Args:
        renderer: Of the running engine; its parsers are used too.
    """

    def __init__(self, renderer: OnlineRenderer) -> None:
        self._online = renderer
        self._renderer = renderer.renderer
        self._config = renderer.model_config
        self._chats = True
        self.fills_gaps = self._renderer.render_completion_suffix("a", "b") is not None

    async def probe_chat(self) -> bool:
        """Whether the model has a chat template, found out by rendering a chat."""
        chat = chat_pb2.ChatInput()
        chat.messages.add(role=chat_pb2.ROLE_USER).parts.add(text="Hello")
        try:
            await self.render(GenerateRequest(chat=chat), None, True)
        except InferenceError as error:
            self._chats = error.reason != "model_not_capable"
        return self._chats

    async def render(
        self, request: GenerateRequest, rule: StructuredOutputsParams | None, skip_special: bool
    ) -> Prompt:
        """Renders whatever the request holds.

        Args:
            request: The whole request.
            rule: What the output must look like.
            skip_special: Whether the caller wants special tokens left out.

        Raises:
            InferenceError: The model cannot take the input.
        """
        if request.HasField("chat"):
            return await self._render_chat(request, rule, skip_special)
        return await self._render_text(request, rule, skip_special)

    async def _render_chat(
        self, request: GenerateRequest, rule: StructuredOutputsParams | None, skip_special: bool
    ) -> Prompt:
        if not self._chats:
            raise _not_a_chat_model()
        self._check_length(characters(request.chat), chat=True)
        chat = chat_request(
            request.chat,
            structured_outputs=rule,
            skip_special_tokens=skip_special,
            cache_salt=request.cache_salt if request.HasField("cache_salt") else None,
            sees_media=self._config.is_multimodal_model,
            calls_tools=self._calls_tools(),
        )
        try:
            rendered = await self._online.render_chat(chat)
        except ChatTemplateResolutionError as error:
            raise _not_a_chat_model() from error
        except (VLLMClientError, ValueError, TypeError) as error:
            log.info("the chat template refused a request: %s", type(error).__name__)
            raise invalid("messages", "the model's chat template refuses them.") from error
        if not isinstance(rendered, tuple):
            raise invalid("messages", "the model's chat template refuses them.")
        _, (engine_input,) = rendered
        token_ids: list[int] = engine_input["prompt_token_ids"]
        parses = self._parses(chat)
        return Prompt(
            engine_input=engine_input,
            token_ids=token_ids,
            # Rendering adds the grammar of tool calls.
            rule=chat.extract_structured_outputs(),
            skip_special_tokens=chat.skip_special_tokens,
            parsing=self._parsing(chat, token_ids, request.stopping) if parses else None,
            reasoning=self._reasoning(chat, token_ids) if parses else {},
        )

    async def _render_text(
        self, request: GenerateRequest, rule: StructuredOutputsParams | None, skip_special: bool
    ) -> Prompt:
        prompt: Any = request.text
        if request.HasField("token_ids"):
            prompt = {"prompt_token_ids": self._checked_ids(request)}
        if request.HasField("suffix"):
            prompt = self._with_suffix(request)
        self._check_length(len(request.text) + len(request.suffix), chat=False)
        extras = {"cache_salt": request.cache_salt} if request.HasField("cache_salt") else {}
        try:
            validate_cache_salt(extras.get("cache_salt"))
            (engine_input,) = await self._renderer.render_cmpl_async(
                [parse_model_prompt(self._config, prompt)],
                # No limit: the service compares the length with the context.
                TokenizeParams(max_total_tokens=None),
                prompt_extras=extras,
            )
        except (VLLMClientError, ValueError, TypeError) as error:
            raise refused(error, "prompt") from error
        token_ids: list[int] = engine_input["prompt_token_ids"]
        if not token_ids:
            raise invalid("prompt", "it must have at least one token.")
        return Prompt(
            engine_input=engine_input,
            token_ids=token_ids,
            rule=rule,
            skip_special_tokens=skip_special,
            # Without a chat there is no reasoning for a rule to wait for.
            reasoning={"reasoning_ended": True} if rule else {},
            echo=await self._echo(request, skip_special) if request.output.echo else "",
        )

    async def _echo(self, request: GenerateRequest, skip_special: bool) -> str:
        if not request.HasField("token_ids"):
            return str(request.text)
        decode = self._renderer.get_tokenizer().decode
        return str(
            await asyncio.to_thread(
                decode, list(request.token_ids.ids), skip_special_tokens=skip_special
            )
        )

    def _checked_ids(self, request: GenerateRequest) -> list[int]:
        ids = list(request.token_ids.ids)
        # The model's own table: an id past its end would take the engine down.
        if max(ids, default=0) >= self._config.get_vocab_size():
            raise invalid("prompt", "it holds a token id outside the model's vocabulary.")
        return ids

    def _with_suffix(self, request: GenerateRequest) -> Any:
        if request.HasField("token_ids"):
            raise invalid("suffix", "it is only allowed when 'prompt' is a text.")
        rendered = self._renderer.render_completion_suffix(request.text, request.suffix)
        if rendered is None:
            raise InferenceError(
                "unsupported_parameter",
                "Unsupported parameter: 'suffix' is not supported with this model.",
                param="suffix",
            )
        return rendered

    def _check_length(self, count: int, *, chat: bool) -> None:
        """Spares the tokenizer what cannot fit: no token stands for more than some characters."""
        at_least = count // self._renderer.get_tokenizer().max_chars_per_token
        if at_least > self._config.max_model_len:
            raise context_error(chat, self._config.max_model_len, at_least, 0)

    def _calls_tools(self) -> bool:
        parser = self._online.parser
        return parser is not None and parser.tool_parser_cls is not None

    def _parses(self, chat: RenderableChat) -> bool:
        parser = self._online.parser
        if parser is None:
            return False
        return (
            bool(chat.tools)
            or parser.reasoning_parser_cls is not None
            or parser.always_adjust_request
            or self._online.use_harmony
        )

    def _vllm_parser(self, chat: RenderableChat) -> Any:
        return self._online.parser(
            self._renderer.get_tokenizer(),
            chat.tools,
            model_config=self._config,
            chat_template_kwargs=self._online.effective_chat_template_kwargs(chat),
        )

    def _parsing(self, chat: RenderableChat, prompt_ids: list[int], stopping: Stopping) -> Parsing:
        return Parsing(
            new_parser=functools.partial(self._vllm_parser, chat),
            chat=chat,
            prompt_ids=prompt_ids,
            holds_text=bool(stopping.strings) and not stopping.include_stop_string,
        )

    def _reasoning(self, chat: RenderableChat, token_ids: list[int]) -> dict[str, Any]:
        parser = self._vllm_parser(chat)
        arguments: dict[str, Any] = {
            "reasoning_ended": chat.resolve_reasoning_ended(parser, token_ids)
        }
        if parser.reasoning_parser is not None:
            template = self._online.effective_chat_template_kwargs(chat)
            arguments["reasoning_parser_kwargs"] = {"chat_template_kwargs": template}
        return arguments


def _not_a_chat_model() -> InferenceError:
    return InferenceError(
        "model_not_capable",
        "This is not a chat model and thus not supported in the v1/chat/completions endpoint. "
        "Did you mean to use v1/completions?",
        param="model",
    )
