"""Chats and texts as tokens, by vLLM's renderer: for generations and for counts of tokens alike.

vLLM keeps what it makes of images and audio in a cache that its engine core has, too, and then
sends the core only a name for them. An input that never reaches the core must not enter this cache:
the core would not know the name when the same image comes again. So a count skips it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from vllm.entrypoints.generate.base.protocol import validate_cache_salt
from vllm.exceptions import VLLMClientError
from vllm.renderers import TokenizeParams
from vllm.renderers.chat_utils import ChatTemplateResolutionError
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import StructuredOutputsParams

from contract.refusals import not_a_chat_model
from inference.engines.received_images import check_images
from inference.engines.vllm_chat import RenderableChat, characters, chat_request
from inference.engines.vllm_errors import invalid, refused
from inference.errors import InferenceError, context_error
from isthmus.v1.chat_pb2 import ChatInput

log = logging.getLogger(__name__)


class InputRenderer:
    """Renders inputs with the running engine's renderer."""

    def __init__(self, online: OnlineRenderer) -> None:
        self._online = online
        self._renderer = online.renderer
        self._config = online.model_config

    async def chat(
        self,
        chat: ChatInput,
        *,
        rule: StructuredOutputsParams | None = None,
        skip_special_tokens: bool = True,
        cache_salt: str | None = None,
        answer_tokens: int = 0,
        is_run: bool = True,
    ) -> tuple[RenderableChat, Any]:
        """Fills the chat template and tokenizes it.

        Args:
            chat: A checked chat.
            rule, skip_special_tokens, cache_salt: As for `chat_request`.
            answer_tokens: Tokens that the output is allowed, for the context error.
            is_run: Whether the result goes to the engine core.

        Returns:
            vLLM's request, as its tool parser may have changed it, and the input for its engine.

        Raises:
            InferenceError: The model cannot take the chat.
        """
        self.check_length(characters(chat), answer_tokens, chat=True)
        request = chat_request(
            chat,
            structured_outputs=rule,
            skip_special_tokens=skip_special_tokens,
            cache_salt=cache_salt,
            takes_media=self._config.is_multimodal_model,
            calls_tools=getattr(self._online.parser, "tool_parser_cls", None) is not None,
        )
        if self._config.is_multimodal_model:
            await asyncio.to_thread(check_images, chat)
        try:
            rendered = await self._online.render_chat(request, skip_mm_cache=not is_run)
        except ChatTemplateResolutionError as error:
            raise InferenceError.of(not_a_chat_model()) from error
        except (VLLMClientError, ValueError, TypeError, SyntaxError) as error:
            # Pillow raises SyntaxError for a PNG that is broken behind its header.
            log.info("the chat template refused a request: %s", type(error).__name__)
            raise invalid("messages", "the model's chat template refuses them.") from error
        if not isinstance(rendered, tuple):
            raise invalid("messages", "the model's chat template refuses them.")
        _, (engine_input,) = rendered
        return request, engine_input

    async def prompt(
        self, prompt: Any, parameters: TokenizeParams, cache_salt: str | None = None
    ) -> Any:
        """Tokenizes a text, or takes token ids as they are; returns the input for vLLM's engine.

        Raises:
            InferenceError: The model cannot take the prompt, or it has no tokens.
        """
        extras = {} if cache_salt is None else {"cache_salt": cache_salt}
        try:
            validate_cache_salt(cache_salt)
            (engine_input,) = await self._renderer.render_cmpl_async(
                [parse_model_prompt(self._config, prompt)], parameters, prompt_extras=extras
            )
        except (VLLMClientError, ValueError, TypeError) as error:
            raise refused(error, "prompt") from error
        if not engine_input["prompt_token_ids"]:
            raise invalid("prompt", "it must have at least one token.")
        return engine_input

    def beginning(self) -> list[int]:
        """The token that an empty text starts from."""
        tokenizer = self._renderer.get_tokenizer()
        first = tokenizer.bos_token_id
        if first is None:
            first = tokenizer.eos_token_id
        if first is None:
            raise invalid("prompt", "it is empty, and the model has no token to begin a text with.")
        return [first]

    def check_length(self, count: int, answer_tokens: int, *, chat: bool) -> None:
        """Refuses text that has too many characters for the context in any tokenization."""
        at_least = count // self._renderer.get_tokenizer().max_chars_per_token
        if at_least > self._config.max_model_len:
            limit = self._config.max_model_len
            raise context_error(chat, limit, at_least, answer_tokens, exact=False)
