"""The embedding engine on real weights, against sentence-transformers' own encode()."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.config import ModelConfig
from inference.engines.base import EngineDeadError, Terms
from inference.engines.embedding_engine import SentenceTransformersEngine
from inference.engines.memory_faults import MemoryFaults
from inference.errors import InferenceError
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import (
    TRUNCATION_SIDE_LEFT,
    TRUNCATION_SIDE_RIGHT,
    TruncationSide,
)
from isthmus.v1.models_pb2 import MODEL_KIND_EMBEDDING
from keys import ConfigError

TEXTS = [
    "hello",
    "The quick brown fox jumps over the lazy dog.",
    "  spaced \n out  ",
    "日本語のテキスト",
    "word " * 100,
    "word " * 254,
    "x",
]


def _engine(directory: Path, **engine_args: Any) -> SentenceTransformersEngine:
    config = ModelConfig(
        id="m", engine="sentence-transformers", source=str(directory), engine_args=engine_args
    )
    return SentenceTransformersEngine(config)


async def _embed(
    engine: SentenceTransformersEngine,
    inputs: Sequence[str | Sequence[int]],
    *,
    dimensions: int | None = None,
    limit: int = 8191,
    truncate: bool = False,
) -> Embeddings:
    request = EmbedRequest(dimensions=dimensions, truncate=truncate)
    for item in inputs:
        if isinstance(item, str):
            request.inputs.add(text=item)
        else:
            request.inputs.add().token_ids.ids.extend(item)
    emitted: list[Any] = []
    await engine.generate(await engine.prepare(request, Terms(limit)), emitted.append)
    (response,) = emitted
    matrix = np.frombuffer(response.vectors, dtype="<f4").reshape(-1, response.dimensions)
    return Embeddings(matrix, list(response.token_counts))


@dataclass
class Embeddings:
    vectors: NDArray[np.float32]
    token_counts: list[int]


@pytest.fixture(scope="module")
def engine(minilm_directory: Path) -> Iterator[SentenceTransformersEngine]:
    engine = _engine(minilm_directory)
    asyncio.run(engine.start(print))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def shortenable(minilm_directory: Path) -> Iterator[SentenceTransformersEngine]:
    engine = _engine(minilm_directory, matryoshka=True)
    asyncio.run(engine.start(print))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def reference(minilm_directory: Path) -> NDArray[np.float32]:
    """The vectors of TEXTS from sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm_directory), local_files_only=True, device="cpu")
    vectors: NDArray[np.float32] = model.encode(TEXTS)
    return vectors


def test_engine_describes_its_model(engine: SentenceTransformersEngine) -> None:
    assert engine.model.kind == MODEL_KIND_EMBEDDING
    assert engine.model.context_length == 256
    assert engine.model.embedding.dimensions == 384
    assert not engine.model.embedding.shortenable
    assert engine.model.ready
    assert engine.model.created > 0
    assert engine.system_fingerprint.startswith("fp_")


async def test_vectors_of_one_batch_equal_the_librarys(
    engine: SentenceTransformersEngine, reference: NDArray[np.float32]
) -> None:
    result = await _embed(engine, TEXTS)
    assert result.vectors.dtype == np.float32
    assert result.vectors.flags.c_contiguous
    np.testing.assert_allclose(result.vectors, reference, atol=1e-5, rtol=0)


async def test_vectors_do_not_depend_on_other_inputs(
    engine: SentenceTransformersEngine, reference: NDArray[np.float32]
) -> None:
    alone = [(await _embed(engine, [text])).vectors[0] for text in TEXTS]
    np.testing.assert_allclose(alone, reference, atol=1e-5, rtol=0)
    callers = await asyncio.gather(*(_embed(engine, [text, *TEXTS[::-1]]) for text in TEXTS))
    for index, result in enumerate(callers):
        expected = [reference[index], *reference[::-1]]
        np.testing.assert_allclose(result.vectors, expected, atol=1e-5, rtol=0)


async def test_token_counts_include_special_tokens(engine: SentenceTransformersEngine) -> None:
    assert list((await _embed(engine, ["hello", "hello world"])).token_counts) == [3, 4]


async def test_longest_input_is_accepted_and_longer_ones_are_refused(
    engine: SentenceTransformersEngine,
) -> None:
    assert (await _embed(engine, ["word " * 254])).token_counts == [256]
    with pytest.raises(InferenceError) as caught:
        await _embed(engine, ["short", "word " * 258])
    assert caught.value.reason == "invalid_request_error"
    assert caught.value.param == "input[1]"
    assert caught.value.message == (
        "This model's maximum context length is 256 tokens, however you requested 260 tokens"
        " (260 in 'input[1]'; 0 for the completion). Please reduce your prompt; or completion"
        " length."
    )
    with pytest.raises(InferenceError, match="length is 4 tokens, however you requested 5 tokens"):
        await _embed(engine, ["one two three"], limit=4)


@pytest.mark.parametrize("item", [[7592] * 254, "word " * 254], ids=["tokens", "text"])
async def test_total_tokens_of_all_inputs_are_limited(
    engine: SentenceTransformersEngine, item: str | list[int]
) -> None:
    before = engine.health().generated_tokens
    with pytest.raises(InferenceError, match="at most 300000 tokens") as caught:
        await _embed(engine, [item] * 1172)
    assert caught.value.param == "input"
    assert engine.health().generated_tokens == before


async def test_input_that_cannot_fit_is_refused_before_tokenization(
    engine: SentenceTransformersEngine,
) -> None:
    text = "a " * 7_900_000
    with pytest.raises(InferenceError) as caught:
        await _embed(engine, ["short", text])
    assert (caught.value.reason, caught.value.param) == ("invalid_request_error", "input[1]")
    counted = re.search(r"however you requested at least (\d+) tokens", caught.value.message)
    assert counted is not None
    # The count is a lower bound, from the longest words of the vocabulary.
    assert 256 < int(counted[1]) < len(text) // 10
    assert (await _embed(engine, [text], truncate=True)).token_counts == [256]


async def test_long_white_space_and_long_unknown_words_take_few_tokens(
    engine: SentenceTransformersEngine,
) -> None:
    assert (await _embed(engine, ["word" + " " * 60_000, "x" * 60_000])).token_counts == [3, 3]


async def test_small_request_ends_while_a_large_one_is_tokenized(
    engine: SentenceTransformersEngine,
) -> None:
    large = asyncio.create_task(_embed(engine, ["word " * 254] * 1172))
    await asyncio.sleep(0)
    await _embed(engine, ["hello"])
    assert not large.done()
    with pytest.raises(InferenceError, match="at most 300000 tokens"):
        await large


async def test_truncate_cuts_the_input_as_the_library_does(
    engine: SentenceTransformersEngine, minilm_directory: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    text = " ".join(str(number) for number in range(400))
    model = SentenceTransformer(str(minilm_directory), local_files_only=True, device="cpu")
    result = await _embed(engine, [text], truncate=True)
    assert result.token_counts == [256]
    np.testing.assert_allclose(result.vectors[0], model.encode(text), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "ids", [[7592, 2088], [101, 7592, 2088, 102], [101, 7592, 2088], [7592, 2088, 102]]
)
async def test_missing_special_tokens_are_added_to_token_ids(
    engine: SentenceTransformersEngine, ids: list[int]
) -> None:
    expected = await _embed(engine, ["hello world"])
    result = await _embed(engine, [ids])
    assert result.token_counts == [4]
    np.testing.assert_allclose(result.vectors, expected.vectors, atol=1e-6, rtol=0)


@pytest.mark.parametrize("token", [30522, 2**32 - 1])
async def test_token_id_beyond_the_vocabulary_is_refused(
    engine: SentenceTransformersEngine, token: int
) -> None:
    with pytest.raises(InferenceError) as caught:
        await _embed(engine, [[7592, token]])
    assert (caught.value.reason, caught.value.param) == ("invalid_value", "input[1]")
    assert f"token {token} is not in the vocabulary of 30522 tokens" in caught.value.message
    await _embed(engine, [[30521]])


async def test_fewer_dimensions_are_refused_by_a_model_without_them(
    engine: SentenceTransformersEngine,
) -> None:
    assert (await _embed(engine, ["a"], dimensions=384)).vectors.shape == (1, 384)
    with pytest.raises(InferenceError) as caught:
        await _embed(engine, ["a"], dimensions=256)
    assert caught.value.reason == "unsupported_parameter"
    assert caught.value.param == "dimensions"
    assert caught.value.message == "This model does not support specifying dimensions."


async def test_dimensions_shorten_and_normalise_the_vectors(
    shortenable: SentenceTransformersEngine,
) -> None:
    assert shortenable.model.embedding.shortenable
    full = (await _embed(shortenable, TEXTS)).vectors
    short = (await _embed(shortenable, TEXTS, dimensions=64)).vectors
    assert short.shape == (len(TEXTS), 64)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)
    lengths = np.linalg.norm(full[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(short, full[:, :64] / lengths, atol=1e-5, rtol=0)
    for wrong in (0, 385):
        with pytest.raises(InferenceError) as caught:
            await _embed(shortenable, TEXTS, dimensions=wrong)
        assert (caught.value.reason, caught.value.param) == ("invalid_value", "dimensions")


async def test_cancelled_inputs_never_reach_the_model(engine: SentenceTransformersEngine) -> None:
    before = engine.health().generated_tokens
    task = asyncio.create_task(_embed(engine, ["word " * 254] * 1000))
    async with asyncio.timeout(60):
        while engine.health().running == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _embed(engine, ["after"])
    assert engine.health().running == 0
    assert engine.health().generated_tokens - before < 200


async def test_health_counts_vectors(engine: SentenceTransformersEngine) -> None:
    before = engine.health()
    await _embed(engine, TEXTS)
    after = engine.health()
    assert after.alive
    assert after.running == 0
    assert after.last_step_age_seconds == 0
    assert after.generated_tokens - before.generated_tokens == len(TEXTS)


async def test_first_out_of_memory_is_an_error_and_the_second_needs_a_new_process(
    engine: SentenceTransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    real, full = engine._model, [True]

    def forward(features: Any) -> Any:
        if full:
            full.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. canary")
        return real(features)

    forward.device = real.device  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "_model", forward)
    with pytest.raises(InferenceError) as caught:
        await _embed(engine, ["x"])
    assert caught.value.reason == "out_of_memory"
    assert "canary" not in caught.value.message
    assert await _embed(engine, ["x"])
    full.append(True)
    with pytest.raises(EngineDeadError):
        await _embed(engine, ["x"])
    engine._memory = MemoryFaults()


async def test_engine_is_not_alive_before_start_and_after_close(minilm_directory: Path) -> None:
    engine = _engine(minilm_directory)
    assert not engine.health().alive
    with pytest.raises(EngineDeadError):
        await _embed(engine, ["a"])
    await engine.start(print)
    await engine.close()
    await engine.close()
    assert not engine.health().alive
    with pytest.raises((EngineDeadError, RuntimeError)):
        await _embed(engine, ["a"])


@pytest.fixture
def copy(minilm_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(minilm_directory, tmp_path / "model"))


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin", "a/x.pkl", "w.pt"])
async def test_code_and_pickles_are_refused(copy: Path, name: str) -> None:
    marker = copy.parent / "ran"
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(ConfigError, match=Path(name).name):
        await _engine(copy).start(print)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
async def test_auto_map_is_refused(copy: Path, name: str) -> None:
    document = json.loads((copy / name).read_text())
    document["auto_map"] = {"AutoModel": "somebody/code--modeling.Model"}
    (copy / name).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="auto_map"):
        await _engine(copy).start(print)


async def test_modules_of_other_packages_are_refused(copy: Path) -> None:
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["type"] = "os.path"
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=r"os\.path"):
        await _engine(copy).start(print)


async def test_links_out_of_the_directory_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text("{}")
    (copy / "extra.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ConfigError, match="links outside"):
        await _engine(copy).start(print)


@pytest.mark.parametrize("argument", ["trust_remote_code", "modules"])
def test_dangerous_arguments_are_refused(tmp_path: Path, argument: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        _engine(tmp_path, **{argument: True})


@pytest.mark.parametrize("side", [TRUNCATION_SIDE_LEFT, TRUNCATION_SIDE_RIGHT])
async def test_cut_input_has_the_vector_of_its_kept_end(
    engine: SentenceTransformersEngine, side: TruncationSide
) -> None:
    request = EmbedRequest(truncate_prompt_tokens=5, truncation_side=side)
    request.inputs.add(text="one two three four five six")
    prepared = await engine.prepare(request, Terms(256))
    kept = "four five six" if side == TRUNCATION_SIDE_LEFT else "one two three"
    whole = EmbedRequest()
    whole.inputs.add(text=kept)
    assert prepared.tokens == (await engine.prepare(whole, Terms(256))).tokens
    request.truncate_prompt_tokens = 2
    with pytest.raises(InferenceError) as refusal:
        await engine.prepare(request, Terms(256))
    assert refusal.value.param == "truncate_prompt_tokens"
