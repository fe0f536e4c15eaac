"""POST /v1/completions: the request, from JSON to one GenerateRequest for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from contract import refusals
from edge.openai import errors
from edge.openai.completions.response import CompletionOptions, CompletionResponse
from edge.openai.completions.schema import DEFAULT_MAX_TOKENS, CompletionRequest
from edge.openai.completions.stream import CompletionStream
from edge.openai.decoding.decoder import Schema
from edge.openai.decoding.types import MAX_PROMPTS, TRUNCATION_SIDES, Input, read_inputs
from edge.openai.errors import OpenAIError
from edge.openai.text.request import (
    ParsedText,
    check_request,
    generate_request,
    other_names,
    wants_running_usage,
    wants_usage,
)
from isthmus.v1.generate_pb2 import GenerateRequest

_SCHEMA: Final[Schema[CompletionRequest]] = Schema(CompletionRequest)
# Bytes that the shared parameters (sampling, constraint) may take in all calls together. They are
# copied for each prompt, so a small body could otherwise become hundreds of megabytes.
_MAX_REPEATED_BYTES: Final = 4 * 1024 * 1024
# The prompt if `prompt` is null: the engine begins a new text, as in OpenAI's API.
_DEFAULT_PROMPT: Final = ""


def parse_completion_request(body: bytes, *, ignore_unknown: bool = False) -> ParsedText:
    """Reads and checks a body. `ignore_unknown` drops unknown parameters, else they are refused.

    Raises:
        OpenAIError: 400.
    """
    request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    request.check_refused()
    check_request(request)
    _check_best_of(request)
    prompts = _prompts(request)
    shared = _shared_request(request)
    if shared.ByteSize() * len(prompts) > _MAX_REPEATED_BYTES:
        limit = _MAX_REPEATED_BYTES // shared.ByteSize()
        raise OpenAIError.of(refusals.array_too_long("prompt", limit, len(prompts)))
    options = CompletionOptions(
        model=request.model,
        n=request.n or 1,
        include_usage=wants_usage(request),
        running_usage=wants_running_usage(request),
        token_ids=bool(request.return_token_ids),
        logprobs=request.logprobs,
        echo=bool(request.echo),
        prompt_logprobs=request.prompt_logprobs is not None,
        prompt_characters=[len(prompt) if isinstance(prompt, str) else 0 for prompt in prompts],
    )
    return ParsedText(
        model=request.model,
        stream=bool(request.stream),
        priority=request.priority,
        affinity=request.session_id or "",
        requests=[_with_prompt(shared, prompt) for prompt in prompts],
        other_names=other_names(request),
        list_name="prompt" if _is_batch(request.prompt) else "",
        stream_translator=partial(CompletionStream, options),
        document_translator=partial(CompletionResponse, options),
    )


def _check_best_of(request: CompletionRequest) -> None:
    best_of, n = request.best_of, request.n or 1
    if best_of is None:
        return
    if best_of < n:
        raise OpenAIError.of(refusals.best_of_below_n())
    if best_of > n and request.stream:
        raise errors.invalid_request(
            "Results cannot be streamed when 'best_of' is greater than 'n'.", "best_of"
        )


def _prompts(request: CompletionRequest) -> list[Input]:
    prompts = read_inputs(_DEFAULT_PROMPT if request.prompt is None else request.prompt)
    if prompts is None:
        raise errors.invalid_request(
            "Invalid type for 'prompt': expected one of a string, array of strings, array of "
            "integers or array of arrays of integers, but got an array of mixed types instead.",
            "prompt",
            "invalid_type",
        )
    if len(prompts) > MAX_PROMPTS:
        raise OpenAIError.of(refusals.array_too_long("prompt", MAX_PROMPTS, len(prompts)))
    choices = len(prompts) * max(request.n or 1, request.best_of or 1)
    if choices > MAX_PROMPTS:
        raise errors.invalid_request(
            f"Invalid 'n': {choices} choices for all prompts together, at most {MAX_PROMPTS} are "
            "allowed.",
            "n",
            "integer_above_max_value",
        )
    return prompts


def _is_batch(prompt: str | Sequence[object] | None) -> bool:
    return isinstance(prompt, list) and not isinstance(prompt[0], int)


def _shared_request(request: CompletionRequest) -> GenerateRequest:
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    shared = generate_request(request, max_tokens)
    output = shared.output
    if request.logprobs is not None:
        output.logprobs = request.logprobs
        if request.echo:
            # An echoed prompt has log probabilities as well.
            output.prompt_logprobs = max(request.logprobs, request.prompt_logprobs or 0)
    if request.best_of is not None:
        output.best_of = request.best_of
    if request.echo:
        output.echo = True
    if request.suffix:
        shared.suffix = request.suffix
    if request.truncate_prompt_tokens is not None:
        shared.truncate_prompt_tokens = request.truncate_prompt_tokens
        if request.truncation_side is not None:
            shared.truncation_side = TRUNCATION_SIDES[request.truncation_side]
    return shared


def _with_prompt(shared: GenerateRequest, prompt: Input) -> GenerateRequest:
    request = GenerateRequest()
    request.CopyFrom(shared)
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request
