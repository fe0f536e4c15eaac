"""The messages of refusals of tokenizations, which both sides make (see refusals.py)."""

from __future__ import annotations

from contract.refusals import Refusal, unsupported_value


def nothing_to_tokenize() -> Refusal:
    message = "Missing required parameter: send either 'prompt' or 'messages'."
    return Refusal("missing_required_parameter", message, "prompt")


def special_tokens_of_text_only() -> Refusal:
    return unsupported_value(
        "add_special_tokens",
        "'add_special_tokens' can only be true with a text: a chat template adds its own.",
    )


def not_a_text_model() -> Refusal:
    message = "This model does not generate text, so it has no prompts to tokenize."
    return Refusal("model_not_capable", message, "model")
