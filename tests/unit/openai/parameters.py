"""What each parameter of each request body must do; every parameter has at least one row.

Paths are those of parameters_walk. A new parameter of a schema needs a row here and one in
docs/compatibility.md; test_compatibility compares the three.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

HONOURED, NO_EFFECT, REFUSED = "honoured", "no effect", "refused"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in a request.

    Attributes:
        path: The parameter.
        status: HONOURED, NO_EFFECT or REFUSED.
        sample: A body with the parameter, without what the smallest valid body has already.
        sets: Proto paths and values of the first gRPC request, which differ without the parameter.
        shows: Text of the response, which is missing without the parameter.
        priority: The priority that is sent as metadata.
        param: `param` of the error that the sample leads to.
        passes: Values that are accepted; those of a refused parameter change nothing.
    """

    path: str
    status: str
    sample: Json
    sets: Json = field(default_factory=dict)
    shows: str = ""
    priority: int | None = None
    param: str = ""
    passes: tuple[Any, ...] = ()


def sent(path: str, sample: Any, sets: Json, **more: Any) -> Parameter:
    """Honoured: the gRPC request has it."""
    return Parameter(path, HONOURED, _body(path, sample), sets=sets, **more)


def shown(path: str, sample: Any, text: str) -> Parameter:
    """Honoured: the response shows it."""
    return Parameter(path, HONOURED, _body(path, sample), shows=text)


def checked(path: str, sample: Json, param: str, *passes: Any) -> Parameter:
    """Honoured: the sample is refused because of this value; the values of `passes` are not."""
    return Parameter(path, HONOURED, sample, param=param, passes=passes)


def advice(path: str, sample: Any) -> Parameter:
    """Accepted without effect."""
    return Parameter(path, NO_EFFECT, _body(path, sample))


def refused(path: str, sample: Any, *passes: Any, param: str = "") -> Parameter:
    """Refused. Null is accepted too, unless the error names another `param`."""
    let_through = passes if param else (None, *passes)
    return Parameter(path, REFUSED, _body(path, sample), param=param or path, passes=let_through)


def _body(path: str, sample: Any) -> Json:
    """A sample that is not a Body is the value of the parameter."""
    return dict(sample) if isinstance(sample, _Body) else {path: sample}


class _Body(dict[str, Any]):
    """A whole body, for a parameter that is nested or needs other parameters."""


Body = _Body
OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**OPEN, "required": ["a"], "additionalProperties": False}
CLOSED_TEXT = json.dumps(CLOSED)
PNG = "data:image/png;base64,AAAA"


def _format(**schema: Any) -> Body:
    inner = {"name": "n", "schema": CLOSED, **schema}
    return Body(response_format={"type": "json_schema", "json_schema": inner})


def _rules() -> Iterator[Parameter]:
    """Constraints: vLLM's two families of parameters, and OpenAI's `response_format`."""
    for family in ("structured_outputs.", "guided_"):

        def rule(name: str, value: Any, sets: Json, family: str = family) -> Parameter:
            nested = family == "structured_outputs."
            body = {"structured_outputs": {name: value}} if nested else {family + name: value}
            return sent(family + name, Body(body), sets)

        yield rule("json", CLOSED_TEXT, {"constraint.json_schema": CLOSED_TEXT})
        yield rule("regex", "a+", {"constraint.regex": "a+"})
        yield rule("choice", ["a", "b"], {"constraint.choices.values": ["a", "b"]})
        yield rule("grammar", "root ::= x", {"constraint.grammar": "root ::= x"})
        if family == "structured_outputs.":
            yield rule("json_object", True, {"constraint.json_object": True})
    yield sent("structured_outputs", {"regex": "a"}, {"constraint": {"regex": "a"}})
    for name, value, *passes in (
        ("structural_tag", "{}"),
        ("disable_any_whitespace", True, False),
        ("disable_additional_properties", True, False),
        ("whitespace_pattern", " "),
    ):
        outputs = Body(structured_outputs={"regex": "a", name: value})
        yield refused(f"structured_outputs.{name}", outputs, *passes)
    yield sent("response_format", {"type": "json_object"}, {"constraint": {"json_object": True}})
    yield advice("response_format", {"type": "text"})
    yield refused("response_format", {"type": "structural_tag"}, param="response_format.type")
    path = "response_format[json_schema].json_schema"
    yield sent(path, _format(), {"constraint.json_schema": CLOSED_TEXT})
    yield sent(f"{path}.schema", _format(), {"constraint.json_schema": CLOSED_TEXT})
    # The name is required and checked, but only error messages use it.
    yield checked(
        f"{path}.name", _format(name="a b"), f"{path.replace('[json_schema]', '')}.name", "n"
    )
    yield checked(f"{path}.strict", _format(schema=OPEN, strict=True), "response_format", False)
    yield advice(f"{path}.description", _format(description="d"))


# Parameters of both chat and legacy completions.
GENERATION = (
    sent("model", "x", {"model": "x"}, shows='"model":"x"'),
    sent("stream", True, {"output.single_message": None}, shows="data: "),
    shown("stream_options", Body(stream=True, stream_options={"include_usage": True}), '"usage":{'),
    shown(
        "stream_options.include_usage",
        Body(stream=True, stream_options={"include_usage": True}),
        '"usage":{',
    ),
    advice(
        "stream_options.include_obfuscation",
        Body(stream=True, stream_options={"include_obfuscation": True}),
    ),
    sent(
        "stream_options.continuous_usage_stats",
        Body(stream=True, stream_options={"continuous_usage_stats": True}),
        {"output.token_ids": True},
        shows='"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}',
    ),
    sent("temperature", 0.5, {"sampling.temperature": 0.5}),
    sent("top_p", 0.25, {"sampling.top_p": 0.25}),
    sent("n", 2, {"output.n": 2}),
    sent("stop", ["a", "b"], {"stopping.strings": ["a", "b"]}),
    sent("stop", "a", {"stopping.strings": ["a"]}),
    sent("presence_penalty", -1.5, {"sampling.presence_penalty": -1.5}),
    sent("frequency_penalty", 1.5, {"sampling.frequency_penalty": 1.5}),
    sent("logit_bias", {"5": -100}, {"sampling.logit_bias.5": -100.0}),
    sent("seed", -(2**63), {"sampling.seed": str(-(2**63))}),
    advice("user", "u"),
    sent("top_k", 7, {"sampling.top_k": 7}),
    sent("min_p", 0.125, {"sampling.min_p": 0.125}),
    sent("repetition_penalty", 1.25, {"sampling.repetition_penalty": 1.25}),
    sent("min_tokens", 2, {"stopping.min_tokens": 2}),
    sent("ignore_eos", True, {"stopping.ignore_eos": True}),
    sent("stop_token_ids", [9], {"stopping.token_ids": [9]}),
    sent("include_stop_str_in_output", True, {"stopping.include_stop_string": True}),
    sent("skip_special_tokens", False, {"output.skip_special_tokens": False}),
    sent("prompt_logprobs", 1, {"output.prompt_logprobs": 1}, shows='"prompt_logprobs":['),
    Parameter("priority", HONOURED, {"priority": 5}, priority=5),
    sent("cache_salt", "s", {"cache_salt": "s"}),
    *_rules(),
    advice("request_id", "r"),
    advice("session_id", "s"),
    advice("stream_interval", 4),
    refused("use_beam_search", True, False),
    refused("length_penalty", 1.5, 1, 1.0),
    refused("watermarking", True, False),
    refused("repetition_detection", {"max_pattern_size": 3}, {}),
    sent("bad_words", ["x"], {"sampling.bad_words": ["x"]}),
    sent("allowed_token_ids", [9], {"sampling.allowed_token_ids": [9]}),
    refused("logprob_token_ids", [1], []),
    refused("logits_processors", ["x"], []),
    refused("thinking_token_budget", 5),
    refused("spaces_between_special_tokens", False, True),
    refused("prompt_embeds", "AAAA", []),
    sent(
        "return_token_ids",
        True,
        {"output.token_ids": True, "output.prompt_token_ids": True},
        shows='"prompt_token_ids":[5,6,7]',
    ),
    shown("return_token_ids", True, '"token_ids":[8]'),
    shown("return_token_ids", Body(stream=True, return_token_ids=True), '"token_ids":[8]'),
    shown(
        "return_token_ids",
        Body(stream=True, return_token_ids=True),
        '"prompt_token_ids":[5,6,7]',
    ),
    refused("return_tokens_as_token_ids", True, False),
    refused("return_token_offsets", True, False),
    refused("return_mm_kwargs", True, False),
    refused("mm_payload", "else", "none", "tensors"),
    refused("routed_experts_prompt_start", 1, 0),
    refused("kv_transfer_params", {"a": 1}, {}),
    refused("ec_transfer_params", {"a": 1}, {}),
    refused("vllm_xargs", {"a": 1}, {}),
)

COMPLETIONS = (
    *GENERATION,
    sent("prompt", "x", {"text": "x"}),
    sent("prompt", ["x", "y"], {"text": "x"}),
    sent("prompt", [1, 2], {"token_ids.ids": [1, 2]}),
    sent("prompt", [[1], [2]], {"token_ids.ids": [1]}),
    sent("max_tokens", 0, {"stopping.max_tokens": 0}),
    sent("logprobs", 3, {"output.logprobs": 3}, shows='"token_logprobs":['),
    sent("echo", True, {"output.echo": True}),
    sent("best_of", 3, {"output.best_of": 3}),
    sent("suffix", "z", {"suffix": "z"}),
    sent("truncate_prompt_tokens", -1, {"truncate_prompt_tokens": -1}),
    sent(
        "truncation_side",
        Body(truncate_prompt_tokens=5, truncation_side="right"),
        {"truncation_side": "TRUNCATION_SIDE_RIGHT"},
    ),
    refused("add_special_tokens", False, True),
)

EMBEDDINGS = (
    sent("input", "x", {"inputs.0.text": "x"}),
    sent("input", ["x", "y"], {"inputs.1.text": "y"}),
    sent("input", [1, 2], {"inputs.0.token_ids.ids": [1, 2]}),
    sent("input", [[1], [2]], {"inputs.1.token_ids.ids": [2]}),
    sent("model", "x", {"model": "x"}, shows='"model":"x"'),
    shown("encoding_format", "base64", '"embedding":"AACAPwAAAAA="'),
    sent("dimensions", 2, {"dimensions": 2}),
    advice("user", "u"),
    advice("request_id", "r"),
    advice("cache_salt", "s"),
    refused("messages", [{"role": "user", "content": "x"}]),
    refused("priority", 1, 0),
    sent("truncate_prompt_tokens", 5, {"truncate_prompt_tokens": 5}),
    sent(
        "truncation_side",
        Body(truncate_prompt_tokens=5, truncation_side="left"),
        {"truncation_side": "TRUNCATION_SIDE_LEFT"},
    ),
    refused("padding", "max_length", "do_not_pad"),
    refused("add_special_tokens", False, True),
    refused("use_activation", False, True),
    refused("embed_dtype", "float16", "float32"),
    refused("endianness", "big", "little", "native"),
    refused("mm_processor_kwargs", {"a": 1}, {}),
)

DETOKENIZATION = (
    sent("tokens", [1, 2], {"token_ids.ids": [1, 2]}),
    sent("model", "x", {"model": "x"}),
)

_JPEG = Body(output_format="jpeg", output_compression=5)
IMAGES = (
    sent("prompt", "x", {"prompt": "x"}),
    sent("model", "x", {"model": "x"}),
    sent("n", 2, {"n": 2}),
    sent("size", "64x128", {"width": 64, "height": 128}),
    sent("size", "64*128", {"width": 64, "height": 128}),
    sent("size", "auto", {"width": None, "height": None}),
    sent("quality", "high", {"steps": 30}, shows='"quality":"high"'),
    advice("quality", "standard"),
    shown("response_format", "url", '"url":"http'),
    advice("response_format", "b64_json"),
    sent("output_format", "webp", {"format": "IMAGE_FORMAT_WEBP"}, shows='"output_format":"webp"'),
    refused("output_format", "gif", "png"),
    refused("output_format", "svg"),
    sent("output_compression", _JPEG, {"quality": 5}),
    shown("stream", True, "event: image_generation.completed"),
    sent(
        "partial_images",
        Body(stream=True, partial_images=1),
        {"partial_images": 1},
        shows="event: image_generation.partial_image",
    ),
    sent("negative_prompt", "y", {"negative_prompt": "y"}),
    sent("steps", 5, {"steps": 5}),
    sent("num_inference_steps", 5, {"steps": 5}),
    sent("guidance_scale", 0.0, {"guidance_scale": 0.0}),
    sent("seed", -7, {"seed": "-7"}, shows='"seed":-7'),
    advice("moderation", "low"),
    advice("complexity", "high"),
    advice("user", "u"),
    advice("safety_identifier", "s"),
    refused("background", "transparent", "auto", "opaque"),
    refused("style", "natural", "vivid"),
    refused("frame_count", 9),
    refused("frame_duration_ms", 200),
    refused("svg", {"model": "m"}),
)
