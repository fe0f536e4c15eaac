"""Descriptions of request parameters for the OpenAPI document."""

from __future__ import annotations

from typing import Final

from contract.parameters import PARAMETERS
from edge.openai.responses.schema import LOGPROBS

_NO_EFFECT: Final = "Accepted without effect."
_REQUEST_ID: Final = f"{_NO_EFFECT} `x-request-id` correlates."
_REPLICA: Final = f"{_NO_EFFECT} Requests with the same value go to the same replica, if possible."
_ONE_CONSTRAINT: Final = (
    "At most one constraint can be given, be it here, in `response_format`, `structured_outputs` "
    "or a `guided_...` member."
)

_STRICT: Final = "Every object is closed and requires all of its properties."
_JSON_SCHEMA: Final = {
    "schema": "A JSON Schema; its root is an object where `strict`.",
    "strict": _STRICT,
}
_FUNCTION: Final = {
    "parameters": "A JSON Schema of type object; absent: no parameters.",
    "strict": _STRICT,
}
_IMAGE: Final = "`data:image/...;base64,...`; addresses are not fetched."


def without_effect(*names: str) -> dict[str, str]:
    """The descriptions of parameters that are accepted without effect."""
    return dict.fromkeys(names, _NO_EFFECT)


_TEXT: Final = {
    **{parameter.name: parameter.description for parameter in PARAMETERS},
    "model": "An id or alias of `GET /v1/models`; the answer repeats it.",
    "stream": "Answers with server-sent events.",
    "stop": "The text ends before the first of these.",
    "logit_bias": "Added to the scores of tokens. Names are token ids of the model's vocabulary.",
    "priority": "Lower runs sooner, where the engine schedules by priority. Default: 0.",
    "request_id": _REQUEST_ID,
    "session_id": _REPLICA,
    **without_effect("user"),
}
_GENERATION: Final = {
    **_TEXT,
    "stream_options": "Needs `stream`.",
    "n": "Independent answers. Models may allow fewer. Default: 1.",
    "response_format": f"The form of the text. {_ONE_CONSTRAINT}",
    "prompt_logprobs": "Log probabilities of the prompt, with this many alternatives a token; not "
    "with `stream`.",
    "return_token_ids": "Adds `prompt_token_ids` and, to choices, `token_ids`.",
    "structured_outputs": f"Exactly one of its constraints. {_ONE_CONSTRAINT}",
    "guided_json": f"A JSON Schema, or the text of one. {_ONE_CONSTRAINT}",
    "guided_choice": f"The text is one of these. {_ONE_CONSTRAINT}",
    "guided_regex": f"The text matches this; only where the service allows it. {_ONE_CONSTRAINT}",
    "guided_grammar": f"The text obeys this; only where the service allows it. {_ONE_CONSTRAINT}",
    **without_effect("stream_interval"),
}

_RESPONSE_PROMPT: Final = {
    "input": "What the user says, or the items of the conversation. Each call has its output "
    "later in the list.",
    "instructions": "A system message before the input.",
    "text": "The form of the text. At most one constraint can be given, be it here or in "
    "`structured_outputs`.",
    "reasoning": "`effort`: how long a reasoning model thinks; without effect on others.",
    "tools": "Tools that the model may call. Types that are not listed are accepted, and the "
    "model does not see them.",
    "tool_choice": "`auto` (default), `none`, `required`, or some of `tools`.",
    "parallel_tool_calls": "Whether the output may hold several calls. Default: true.",
    "truncation": "Too long an input is refused, never cut.",
    "previous_response_id": "Continues a kept response; refused where none are kept.",
    "chat_template_kwargs": "Variables of the model's chat template.",
}
# By schema and parameter. Parameters that are refused by name have a text of their own.
DESCRIPTIONS: Final = {
    "ChatRequest": {
        **_GENERATION,
        "messages": "The conversation. Each `tool` message answers a call of the assistant message "
        "before it, and every call is answered. As text: JSON of the list where it begins with `[` "
        "or `{`, else what the user says.",
        "max_completion_tokens": "At most this many tokens an answer, reasoning included. Default: "
        "what the context allows.",
        "max_tokens": "The former name of `max_completion_tokens`; not beside it.",
        "logprobs": "Adds log probabilities of the answer's tokens.",
        "top_logprobs": "Alternatives a token; needs `logprobs: true`.",
        "tools": "Functions that the model may call. Not beside `functions`.",
        "tool_choice": "`auto` (default), `none`, `required`, or functions of `tools`. Needs "
        "`tools`.",
        "parallel_tool_calls": "Whether an answer may hold several calls. Needs `tools`.",
        "functions": "The form before `tools`; not beside it.",
        "function_call": "The form before `tool_choice`. Needs `functions`.",
        "reasoning_effort": "How long a reasoning model thinks; without effect on others.",
        "metadata": "Comes back in the answer; not kept.",
        "service_tier": f"{_NO_EFFECT} The answer says `default`.",
        "store": f"{_NO_EFFECT} Nothing is ever stored.",
        "modalities": "Only text is offered: `audio` is refused.",
        "add_generation_prompt": "Opens the assistant's turn. Default: true.",
        "continue_final_message": "Continues the last message; not beside `add_generation_prompt: "
        "true`.",
        "chat_template_kwargs": "Variables of the model's chat template.",
        "echo": "The content begins with the last message's, if the assistant wrote it or it is "
        "continued.",
        "include_reasoning": "`false` leaves the reasoning's text out. Default: true.",
        **without_effect("verbosity", "safety_identifier"),
        "prompt_cache_key": _REPLICA,
        **without_effect("prompt_cache_retention", "prompt_cache_options"),
    },
    "ResponsesRequest": {
        **_TEXT,
        **_RESPONSE_PROMPT,
        "stream_options": _NO_EFFECT,
        "max_output_tokens": "At most this many tokens, reasoning included. Default: what the "
        "context allows.",
        "include": f"`{LOGPROBS}` adds log probabilities of the text's tokens. The others have no "
        "effect.",
        "top_logprobs": "Adds log probabilities, with this many alternatives a token.",
        "metadata": "Comes back in the response; not kept.",
        "max_tool_calls": f"{_NO_EFFECT} It is about tools that a server runs.",
        "service_tier": f"{_NO_EFFECT} The response says `default`.",
        "store": "Keeps the response, where the operator has chosen so; the response says whether "
        "it is kept. Default: false.",
        "prompt_cache_key": _REPLICA,
        "include_reasoning": "`false` leaves the reasoning out. Default: true.",
        "structured_outputs": "Exactly one of its constraints, and none in `text`.",
        **without_effect(
            "safety_identifier", "prompt_cache_retention", "prompt_cache_options", "client_metadata"
        ),
    },
    "InputTokensRequest": {"model": _TEXT["model"], **_RESPONSE_PROMPT},
    "CompletionRequest": {
        **_GENERATION,
        "prompt": "Used as it is. A text, token ids, or a list of either; each has answers of its "
        "own, and choice = prompt x n + sample.",
        "max_tokens": "At most this many tokens an answer. Default: 16.",
        "logprobs": "Adds log probabilities, with this many alternatives a token.",
        "echo": "The text begins with the prompt.",
        "best_of": "Generates this many answers and returns the likeliest `n` of them; at least "
        "`n`, and not above it with `stream`. Default: `n`.",
        "suffix": "What follows the text; refused where the model cannot fill in.",
        "truncate_prompt_tokens": "Cuts a longer prompt to so many tokens; -1: to what the context "
        "leaves beside `max_tokens`. Default: too long a prompt is refused.",
        "truncation_side": "The end that is cut off. Default: `left`.",
    },
    "EmbeddingsRequest": {
        "input": "A text, token ids, or a list of either, none of them empty. Too long an input is "
        "refused unless `truncate_prompt_tokens` is given.",
        "model": "May be absent where exactly one embedding model is served.",
        "encoding_format": "`base64` is of little-endian float32.",
        "dimensions": "Shortens the vectors, where the model was trained for it.",
        "truncate_prompt_tokens": "Cuts longer inputs to so many tokens, special ones included; "
        "-1: to the model's limit.",
        "truncation_side": "The end that is cut off. Default: `right`.",
        "request_id": _REQUEST_ID,
        **without_effect("user", "cache_salt"),
    },
    "TokenizationRequest": {
        "prompt": "A text, used as it is. Either this or `messages`.",
        "messages": "A conversation, as for `/v1/chat/completions`.",
        "model": "May be absent where exactly one text model is served.",
        "add_special_tokens": "Adds the tokens that the tokenizer puts around a text, as "
        "`/v1/completions` does. Default: true; only with `prompt`.",
        "return_token_strs": "Adds the name of each token in the vocabulary.",
        **dict.fromkeys(
            (
                "tools",
                "tool_choice",
                "reasoning_effort",
                "add_generation_prompt",
                "continue_final_message",
                "chat_template_kwargs",
            ),
            "As for `/v1/chat/completions`; only with `messages`.",
        ),
    },
    "DetokenizationRequest": {
        "tokens": "Token ids of the model's vocabulary.",
        "model": "May be absent where exactly one text model is served.",
    },
    "ImageRequest": {
        "prompt": "What to draw. A model's text encoder may take less: too long a prompt is "
        "refused, never cut.",
        "model": "May be absent where exactly one image model is served.",
        "n": "Pictures to draw. Default: 1.",
        "size": "`WIDTHxHEIGHT` (or `WIDTH*HEIGHT`), sides of 64 to 2048 pixels and at most "
        "2,400,000 together; the picture has exactly this size. `auto` is the model's native one. "
        "Default: `1024x1024`.",
        "quality": "A share of the model's default steps: `low` half, `medium` (`auto`, "
        "`standard`) all, `high` (`hd`) one and a half, `xhigh` two, `max` three times as many. "
        "`steps` overrules it.",
        "response_format": "`url` gives addresses that work for a limited time; not with `stream`. "
        "Default: `b64_json`; for the names dall-e-2 and dall-e-3 `url`, except in a stream.",
        "output_format": "How pictures are encoded. Default: `png`.",
        "output_compression": "Quality of `jpeg` and `webp`. Default: 100.",
        "stream": "Answers with server-sent events.",
        "partial_images": "Previews of each picture; above 0 only with `stream`. Default: 0.",
        "negative_prompt": "What to avoid.",
        "steps": "Denoising steps.",
        "num_inference_steps": "Another name of `steps`.",
        "guidance_scale": "How closely to follow the prompt.",
        "seed": "Draws the same picture again on the same engine; picture i of several uses seed "
        "+ i.",
        **without_effect("moderation", "complexity", "user", "safety_identifier"),
    },
    "StreamOptions": {
        "include_usage": "Ends the stream with a chunk that has `usage` and no choices.",
        "include_obfuscation": f"{_NO_EFFECT} Nothing is ever added.",
        "continuous_usage_stats": "Adds the usage so far to every chunk.",
    },
    "JsonSchema": _JSON_SCHEMA,
    "Function": _FUNCTION,
    "AssistantMessage": {
        "content": "May be null or absent beside `tool_calls`, `function_call`, `refusal` or "
        "reasoning.",
    },
    "ImageUrl": {"url": _IMAGE},
    "InputImage": {"image_url": _IMAGE},
    "NamedSchemaFormat": _JSON_SCHEMA,
    "ResponseFunction": _FUNCTION,
}
