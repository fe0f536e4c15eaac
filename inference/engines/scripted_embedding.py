"""A deterministic embedding engine without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from inference.config import ModelConfig
from inference.convert import context_error
from inference.engines.base import EmbeddingEngine, Embeddings, EngineHealth, ReportProgress
from inference.engines.scripted import read_script
from inference.errors import InferenceError
from isthmus.v1.models_pb2 import EmbeddingCapabilities, Model, ModelKind


class ScriptedEmbeddingEngine(EmbeddingEngine):
    """An embedding engine whose vectors are hashes of their inputs."""

    DIMENSIONS = 8

    def __init__(self, config: ModelConfig) -> None:
        script = read_script(config)
        self._embedded = 0
        self.system_fingerprint = "fp_scripted"
        self.model = Model(
            kind=ModelKind.MODEL_KIND_EMBEDDING,
            created=1_700_000_000,
            context_length=script.context_length,
            embedding=EmbeddingCapabilities(dimensions=self.DIMENSIONS, max_inputs=2048),
        )

    async def start(self, report: ReportProgress) -> None:
        """Is ready at once."""
        report("ready")

    def health(self) -> EngineHealth:
        """Answers from counters."""
        return EngineHealth(True, 0, 0.0, self._embedded)

    async def close(self) -> None:
        """Has nothing to close."""

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        dimensions: int | None,
        max_input_tokens: int,
        truncate: bool,
    ) -> Embeddings:
        """Hashes each input to a vector of length 1."""
        if dimensions not in (None, self.DIMENSIONS):
            raise InferenceError(
                "unsupported_parameter",
                "This model does not support specifying dimensions.",
                param="dimensions",
            )
        counts = [len(item.split()) if isinstance(item, str) else len(item) for item in inputs]
        if max(counts) > max_input_tokens and not truncate:
            raise context_error(False, max_input_tokens, max(counts), 0)
        self._embedded += len(inputs)
        digests = b"".join(hashlib.sha256(repr(item).encode()).digest() for item in inputs)
        raw = np.frombuffer(digests, dtype="<u4").reshape(len(inputs), self.DIMENSIONS)
        vectors = raw.astype(np.float32) / np.float32(2**31) - np.float32(1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return Embeddings(vectors.astype(np.float32), counts)
