"""A deterministic embedding engine without a model."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.limits import MAX_INPUT_TOKENS, MAX_INPUTS
from contract.refusals import input_path, too_many_input_tokens
from inference.config import ModelConfig
from inference.engines import engine_args
from inference.engines.base import (
    EmbeddingEngine,
    Emit,
    EngineDeadError,
    EngineHealth,
    Report,
    Terms,
)
from inference.engines.embedding_model import requested_dimensions
from inference.engines.memory_faults import MemoryFaults
from inference.engines.script import overridden, raise_fault
from inference.errors import InferenceError, check_vocabulary, context_error
from inference.token_inputs import read_inputs
from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse
from isthmus.v1.models_pb2 import EmbeddingCapabilities, Model, ModelKind

# Number of token ids.
_VOCABULARY: Final = 50_000
# Prefixes of a first input that overrides the script.
_OVERRIDES: Final = ('{"seconds"', '{"fail"')


class EmbeddingScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The script of an embedding engine.

    A JSON object as the first input overrides `seconds` and `fail` for one request.

    Attributes:
        context_length: Maximum words or token ids of one input.
        seconds: Duration of a request.
        fail: "start" raises before the work, "memory" runs out of memory.
    """

    context_length: int = 4096
    shortenable: bool = False
    dimensions: int = 8
    seconds: float = 0.0
    fail: Literal["start", "memory"] | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    inputs: Sequence[str | Sequence[int]]
    columns: int
    token_counts: Sequence[int]
    script: EmbeddingScript
    max_output_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return sum(self.token_counts)


class ScriptedEmbeddingEngine(EmbeddingEngine):
    """An embedding engine whose vectors are hashes of their inputs."""

    def __init__(self, config: ModelConfig) -> None:
        script = engine_args.settings(config, EmbeddingScript)
        self._script = script
        self._dimensions = script.dimensions
        self._running = 0
        self._last_end = time.monotonic()
        self._sizes = range(1 if script.shortenable else script.dimensions, script.dimensions + 1)
        self._embedded = 0
        self._alive = True
        self._memory = MemoryFaults()
        self.system_fingerprint = "fp_scripted"
        self.model = Model(
            kind=ModelKind.MODEL_KIND_EMBEDDING,
            created=1_700_000_000,
            context_length=script.context_length,
            embedding=EmbeddingCapabilities(
                dimensions=self._dimensions,
                shortenable=script.shortenable,
                max_inputs=MAX_INPUTS,
            ),
        )

    async def start(self, report: Report) -> None:
        report("ready")

    def health(self) -> EngineHealth:
        age = time.monotonic() - self._last_end if self._running else 0.0
        return EngineHealth(self._alive, self._running, age, self._embedded)

    async def close(self) -> None:
        """Does nothing: there is nothing to free."""

    async def prepare(self, request: EmbedRequest, terms: Terms) -> _Prepared:
        """Counts the words of a text, or the token ids, as tokens."""
        inputs = read_inputs(request, terms.token_inputs)
        columns = requested_dimensions(request, self._sizes)
        counts = [len(item.split()) if isinstance(item, str) else len(item) for item in inputs]
        if max(counts) > terms.context_length and not request.truncate:
            longest = input_path(counts.index(max(counts)), len(counts))
            raise context_error(False, terms.context_length, max(counts), 0, param=longest)
        if sum(counts) > MAX_INPUT_TOKENS:
            raise InferenceError.of(too_many_input_tokens())
        for index, item in enumerate(inputs):
            if not isinstance(item, str):
                check_vocabulary(item, _VOCABULARY, input_path(index, len(inputs)))
        script = self._script
        if isinstance(first := inputs[0], str) and first.startswith(_OVERRIDES):
            script = overridden(script, first, "input")
        return _Prepared(inputs, columns, counts, script)

    async def generate(self, prepared: _Prepared, emit: Emit) -> None:
        """Hashes each input to a vector of length 1."""
        self._fault(prepared.script)
        if not self._running:
            self._last_end = time.monotonic()
        self._running += 1
        try:
            await asyncio.sleep(prepared.script.seconds)
        finally:
            self._running -= 1
            self._last_end = time.monotonic()
        self._embedded += len(prepared.inputs)
        columns = prepared.columns
        rows = [_vector(repr(item), self._dimensions, columns) for item in prepared.inputs]
        emit(
            EmbedResponse(
                dimensions=columns, vectors=b"".join(rows), token_counts=prepared.token_counts
            )
        )

    def _fault(self, script: EmbeddingScript) -> None:
        if script.fail == "memory":
            error = self._memory.error("fewer inputs")
            self._alive = not isinstance(error, EngineDeadError)
            raise error
        raise_fault(script.fail, 0)


@lru_cache(maxsize=MAX_INPUTS)
def _vector(item: str, dimensions: int, kept: int) -> bytes:
    # Cached, so that a benchmark that repeats its texts measures the service and not the hashing.
    raw = np.frombuffer(hashlib.shake_256(item.encode()).digest(4 * dimensions), dtype="<u4")
    vector = (raw.astype(np.float32) / np.float32(2**31) - np.float32(1))[:kept]
    unit: NDArray[np.float32] = vector / np.linalg.norm(vector, axis=0)
    return unit.tobytes()
