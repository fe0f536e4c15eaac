"""What is expected of the SDK's own tests, where that is not simply "passes".

A test is named by its file and function; the async tests have the names of the others, and each
runs in several variants (clients that check answers loosely or strictly, over aiohttp, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final


@dataclass(frozen=True, slots=True)
class Failure:
    """A test that fails.

    Attributes:
        file: Below the SDK's tests/api_resources.
        functions: A glob; `test_[!p]*` leaves out test_path_params_*, which never gets to a server.
        ended: The exception's class and HTTP status.
        reason: Why that is right.
        variants: Those that fail; empty means all.
    """

    file: str
    functions: str
    ended: str
    reason: str
    variants: frozenset[str] = frozenset()

    def covers(self, file: str, function: str, variant: str) -> bool:
        return (
            file == self.file
            and fnmatchcase(function, self.functions)
            and (not self.variants or variant in self.variants)
        )


_STORED: Final = "Nothing is stored, so there are no stored completions to find, change or list."
_FROM_TEXT: Final = "Pictures are made from text alone."

FAILURES: Final = (
    Failure("chat/test_completions.py", "test_[!p]*_retrieve", "NotFoundError 404", _STORED),
    Failure("chat/test_completions.py", "test_[!p]*_update", "NotFoundError 404", _STORED),
    Failure("chat/test_completions.py", "test_[!p]*_delete", "NotFoundError 404", _STORED),
    Failure("chat/test_completions.py", "test_*_list*", "APIStatusError 405", _STORED),
    Failure(
        "test_embeddings.py",
        "test_*_create",
        "APIResponseValidationError 200",
        "Where no encoding is chosen the SDK asks for base64, and a strict client checks the "
        "answer for a list of numbers before it decodes that. Where numbers are asked for, as in "
        "the test with all parameters, a strict client is content.",
        frozenset({"strict", "aiohttp"}),
    ),
    Failure("test_images.py", "test_*_edit*", "NotFoundError 404", _FROM_TEXT),
    Failure("test_images.py", "test_*_create_variation*", "NotFoundError 404", _FROM_TEXT),
    Failure(
        "test_models.py",
        "test_[!p]*_delete",
        "APIStatusError 405",
        "Models come from the configuration; callers cannot delete them.",
    ),
)

_NO_ROOM: Final = "0 tokens leave no room for an answer; OpenAI's least is 1."
_NOT_OFFERED: Final = "Not offered, and without it the answer would be another."
_WITHOUT_STREAM: Final = "OpenAI allows it in streams alone."
_NOT_A_TOKEN: Final = "Its keys are token ids; the test's is 'foo'."
_BOTH_FORMS: Final = "The old form of tools cannot stand beside the new one, which is kept."

_CHAT: Final = {
    "max_completion_tokens": _NO_ROOM,
    "max_tokens": _NO_ROOM,
    "audio": _NOT_OFFERED,
    "prediction": _NOT_OFFERED,
    "web_search_options": _NOT_OFFERED,
    "moderation": _NOT_OFFERED,
    "logit_bias": _NOT_A_TOKEN,
    "functions": _BOTH_FORMS,
    "function_call": _BOTH_FORMS,
    "tools[0].function.parameters": "A strict schema is of a closed object; the test's is not.",
}
_COMPLETIONS: Final = {
    "suffix": "The model does not fill in middles.",
    "best_of": "At least n answers must be made to choose n of them; the test's is 0.",
    "logit_bias": _NOT_A_TOKEN,
}
_IMAGES: Final = {
    "background": "Pictures have no transparency.",
    "frame_count": _NOT_OFFERED,
    "frame_duration_ms": _NOT_OFFERED,
    "svg": _NOT_OFFERED,
}

REFUSED: Final[dict[tuple[str, str], dict[str, str]]] = {
    ("chat/test_completions.py", "test_method_create_with_all_params_overload_1"): {
        **_CHAT,
        "stream_options": _WITHOUT_STREAM,
    },
    ("chat/test_completions.py", "test_method_create_with_all_params_overload_2"): _CHAT,
    ("test_completions.py", "test_method_create_with_all_params_overload_1"): {
        **_COMPLETIONS,
        "stream_options": _WITHOUT_STREAM,
    },
    ("test_completions.py", "test_method_create_with_all_params_overload_2"): _COMPLETIONS,
    ("test_embeddings.py", "test_method_create_with_all_params"): {
        "dimensions": "The model has vectors of one size.",
    },
    ("test_images.py", "test_method_generate_with_all_params_overload_1"): {
        **_IMAGES,
        "partial_images": _WITHOUT_STREAM,
    },
    ("test_images.py", "test_method_generate_with_all_params_overload_2"): {
        **_IMAGES,
        "response_format": "A stream's events carry the pictures themselves, as OpenAI's do.",
    },
}
"""The members that are refused with their reasons: without exactly these the test passes."""
