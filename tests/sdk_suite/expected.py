"""Expected outcomes of the SDK's own tests that do not simply pass.

A test is named by its file and function; sync and async tests share their names. Each test runs in
several variants (clients that validate responses loosely or strictly, over aiohttp, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final


@dataclass(frozen=True, slots=True)
class Failure:
    """An expected failure of one or more tests.

    Attributes:
        file: Path below the SDK's tests/api_resources.
        functions: A glob; `test_[!p]*` excludes test_path_params_*, which sends no request.
        ended: The exception's class and HTTP status.
        reason: Why this outcome is correct.
        variants: The variants that fail; empty means all.
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


_STORED: Final = "Completions are not stored, so they cannot be retrieved, updated or listed."
_FROM_TEXT: Final = "Images are generated from text only."

FAILURES: Final = (
    Failure("chat/test_completions.py", "test_[!p]*_retrieve", "NotFoundError 404", _STORED),
    Failure("chat/test_completions.py", "test_[!p]*_update", "NotFoundError 404", _STORED),
    Failure("chat/test_completions.py", "test_[!p]*_delete", "NotFoundError 404", _STORED),
    Failure("chat/test_completions.py", "test_*_list*", "APIStatusError 405", _STORED),
    Failure(
        "test_embeddings.py",
        "test_*_create",
        "APIResponseValidationError 200",
        "Without an encoding the SDK requests base64, and a strict client checks the response "
        "for a list of numbers before decoding it. With encoding_format=float, as in the test "
        "with all parameters, the strict client passes.",
        frozenset({"strict", "aiohttp"}),
    ),
    Failure("test_images.py", "test_*_edit*", "NotFoundError 404", _FROM_TEXT),
    Failure("test_images.py", "test_*_create_variation*", "NotFoundError 404", _FROM_TEXT),
    Failure(
        "test_models.py",
        "test_[!p]*_delete",
        "APIStatusError 405",
        "Models come from the configuration; clients cannot delete them.",
    ),
)

_NO_ROOM: Final = "A limit of 0 tokens is below the minimum of 1, as at OpenAI."
_NOT_OFFERED: Final = "Not supported, and ignoring it would change the response."
_WITHOUT_STREAM: Final = "Allowed in streams only, as at OpenAI."
_NOT_A_TOKEN: Final = "Keys must be token ids; the test sends 'foo'."
_BOTH_FORMS: Final = "The older form of tools excludes the newer one, which the test also sends."

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
    "tools[0].function.parameters": "A strict schema must be a closed object; the test's is open.",
}
_COMPLETIONS: Final = {
    "suffix": "The model does not support text insertion.",
    "best_of": "best_of must be at least n; the test sends 0.",
    "logit_bias": _NOT_A_TOKEN,
}
_IMAGES: Final = {
    "background": "Images have no transparency.",
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
        "dimensions": "The model's vectors cannot be shortened.",
    },
    ("test_images.py", "test_method_generate_with_all_params_overload_1"): {
        **_IMAGES,
        "partial_images": _WITHOUT_STREAM,
    },
    ("test_images.py", "test_method_generate_with_all_params_overload_2"): {
        **_IMAGES,
        "response_format": "A stream's events hold the image data, as OpenAI's do.",
    },
}
"""Refused parameters and reasons, by (file, function); without them the test passes."""
