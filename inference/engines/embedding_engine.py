"""An embedding engine for any sentence-transformers model; concurrent requests share batches."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
from inference.engines.batching import Batcher, Measured, Tokens
from inference.engines.embedding_model import (
    Truncation,
    requested_dimensions,
    shorten,
    special_tokens,
    vector_sizes,
)
from inference.engines.memory_faults import MemoryFaults, ran_out_of_memory, release_memory
from inference.engines.model_files import check_model_directory, fingerprint, newest_mtime
from inference.errors import InferenceError, check_vocabulary, context_error, internal_error
from inference.token_inputs import read_inputs
from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse
from isthmus.v1.models_pb2 import MODEL_KIND_EMBEDDING, EmbeddingCapabilities, Model
from keys import ConfigError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_log = logging.getLogger(__name__)

# Positions of a batch, padding included. The duration of a batch is the longest wait of a small
# request: about a quarter of a second for a small model on two cores.
_MAX_BATCH_TOKENS_CPU: Final = 2048
_MAX_BATCH_TOKENS_GPU: Final = 32768
# Texts up to this length are tokenized even if each token of the vocabulary were too short for
# them: white space and unknown words make few tokens of many characters.
_ALWAYS_TOKENIZED_CHARACTERS: Final = 64 * 1024
# Short inputs that are timed at the start; the fastest counts.
_SHORT_INPUTS: Final = 3
# The least and the most positions that a batch may cost besides its own. Time beside other work
# of the machine says little.
_BATCH_COSTS: Final = (8, 1024)
# Maximum seconds that `close` waits for the batcher's thread.
_CLOSE_SECONDS: Final = 5.0
# Files to download from the hub.
_HUB_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
# Arguments that `engine_args` may not set, because they would load code or other formats.
_FORCED: Final = ("trust_remote_code", "modules", "backend")


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """A tokenized request: token ids of each input, special ones included.

    The leading `dimensions` of each vector are kept. Vectors have no output tokens.
    """

    tokens: Sequence[Tokens]
    dimensions: int
    max_output_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.tokens))


class SentenceTransformersEngine(EmbeddingEngine):
    """An embedding engine on sentence-transformers.

    Two entries of `engine_args` belong to the engine: `matryoshka` (true or a list of sizes) allows
    shorter vectors for a model whose files do not declare them, and `max_batch_tokens` bounds the
    positions of a batch. The others are arguments of SentenceTransformer.
    """

    def __init__(self, config: ModelConfig) -> None:
        engine_args.refuse(config, _FORCED)
        arguments = dict(config.engine_args)
        self._id = config.id
        self._source = config.source
        self._matryoshka: bool | list[int] = arguments.pop("matryoshka", False)
        self._max_batch_tokens: int | None = arguments.pop("max_batch_tokens", None)
        self._arguments = arguments
        # One thread, because tokenizers are not safe to use from two threads at once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._batcher: Batcher | None = None
        self._memory = MemoryFaults()
        self.model = Model(kind=MODEL_KIND_EMBEDDING)
        self.system_fingerprint = "fp_unloaded"

    async def start(self, report: Report) -> None:
        """Loads the model and embeds one text."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._tokenizing, self._load, report)
        report("warming up")
        await self._embed_text("warm", self._limit)
        await self._measure()
        self.model.ready = True

    async def _embed_text(self, text: str, limit: int) -> None:
        request = EmbedRequest(truncate=True)
        request.inputs.add(text=text)
        await self.generate(await self.prepare(request, Terms(limit)), lambda _: None)

    async def _measure(self) -> None:
        """Times a short input, and one that fills a batch, or the longest one if that is shorter.

        The longest input of some models takes a slow machine half an hour.
        """
        batcher = self._batcher
        if batcher is None:
            return
        tokens = min(self._limit, batcher.max_batch_tokens)
        short = min([await self._seconds("warm", self._limit) for _ in range(_SHORT_INPUTS)])
        long = await self._seconds("warm " * tokens, tokens)
        batcher.measured = Measured(tokens, long)
        batcher.batch_cost = max(
            _BATCH_COSTS[0], min(_BATCH_COSTS[1], round(tokens * short / long))
        )

    async def _seconds(self, text: str, limit: int) -> float:
        began = time.monotonic()
        await self._embed_text(text, limit)
        return time.monotonic() - began

    def health(self) -> EngineHealth:
        """The state; `generated_tokens` counts vectors."""
        if self._batcher is None:
            return EngineHealth(False, 0, 0.0, 0)
        return self._batcher.health()

    async def close(self) -> None:
        """Waits for the current batch; requests that wait for another one fail."""
        self.model.ready = False
        if self._batcher is not None:
            await asyncio.to_thread(self._batcher.close, _CLOSE_SECONDS)
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    async def prepare(self, request: EmbedRequest, terms: Terms) -> PreparedInputs:
        """Checks and tokenizes the inputs.

        Token ids from a request are used unchanged. Special tokens that the tokenizer would put
        at either end are added where they are missing, and count.
        """
        if self._batcher is None:
            raise EngineDeadError
        inputs = await asyncio.to_thread(read_inputs, request, terms.token_inputs)
        dimensions = requested_dimensions(request, self._sizes)
        limit = min(terms.context_length, self._limit)
        truncation = Truncation.of(request, limit, self._prefix, self._suffix)
        return PreparedInputs(await self._tokenize(inputs, truncation), dimensions)

    async def generate(self, prepared: PreparedInputs, emit: Emit) -> None:
        """Embeds the inputs in batches shared with other requests; emits one message."""
        if self._batcher is None:
            raise EngineDeadError
        longest = max(map(len, prepared.tokens))
        try:
            vectors = await self._batcher.submit(prepared.tokens)
        except (EngineDeadError, asyncio.CancelledError):
            raise
        except Exception as error:
            if ran_out_of_memory(error):
                raise self._memory.error("fewer or shorter inputs", longest) from error
            raise internal_error() from error
        self._memory.fitted(longest)
        if prepared.dimensions != vectors.shape[1]:
            vectors = shorten(vectors, prepared.dimensions)
        emit(
            EmbedResponse(
                dimensions=vectors.shape[1],
                vectors=vectors.astype("<f4", copy=False).tobytes(),
                token_counts=[len(ids) for ids in prepared.tokens],
            )
        )

    def _load(self, report: Report) -> None:
        report("importing sentence-transformers")
        import sentence_transformers

        directory = self._directory(report)
        check_model_directory(directory)
        report("loading weights")
        arguments = dict(self._arguments)
        model_arguments = {**arguments.pop("model_kwargs", {}), "use_safetensors": True}
        if model_arguments.get("trust_remote_code"):
            raise ConfigError(f"models.{self._id}.engine_args.model_kwargs: trust_remote_code")
        model = sentence_transformers.SentenceTransformer(
            str(directory),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs=model_arguments,
            **arguments,
        ).eval()
        self._adopt(model, directory)

    def _directory(self, report: Report) -> Path:
        directory = Path(self._source)
        if directory.is_dir():
            return directory
        from huggingface_hub import snapshot_download

        report("downloading from the hub")
        revision = self._arguments.pop("revision", None)
        return Path(
            snapshot_download(self._source, revision=revision, allow_patterns=list(_HUB_FILES))
        )

    def _adopt(self, model: SentenceTransformer, directory: Path) -> None:
        """Reads the model's limits and vocabulary, and starts the batcher."""
        tokenizer = model.tokenizer
        config = model.transformers_model.config
        dimensions = model.get_embedding_dimension()
        if tokenizer is None or dimensions is None:
            raise ConfigError(f"models.{self._id}: not a text embedding model")
        self._model, self._tokenizer = model, tokenizer
        self._prompt: str = model.prompts.get(model.default_prompt_name or "", "")
        self._limit = int(model.max_seq_length or config.max_position_embeddings)
        self._vocabulary = int(model.transformers_model.get_input_embeddings().num_embeddings)
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._prefix, self._suffix = special_tokens(tokenizer)
        self._sizes = vector_sizes(self._matryoshka, config, dimensions)
        self.model.created = newest_mtime(directory)
        self.model.context_length = self._limit
        self.model.embedding.CopyFrom(
            EmbeddingCapabilities(
                dimensions=dimensions,
                shortenable=len(self._sizes) > 1,
                max_inputs=MAX_INPUTS,
            )
        )
        self.system_fingerprint = fingerprint(directory, model.dtype, model.device.type)
        on_cpu = model.device.type == "cpu"
        self._batcher = Batcher(
            self._forward,
            self._max_batch_tokens or (_MAX_BATCH_TOKENS_CPU if on_cpu else _MAX_BATCH_TOKENS_GPU),
        )

    async def _tokenize(
        self, inputs: Sequence[str | Sequence[int]], truncation: Truncation
    ) -> list[Tokens]:
        """The token ids of each input, special ones included; concurrent requests take turns."""
        loop = asyncio.get_running_loop()
        limit, truncate = truncation.limit, truncation.cuts
        max_characters = max(limit * self._longest_token, _ALWAYS_TOKENIZED_CHARACTERS)
        if not truncate:
            # Refuses texts that are far too long before any text is tokenized.
            for index, item in enumerate(inputs):
                if isinstance(item, str) and len(item) > max_characters:
                    at_least = math.ceil(len(item) / self._longest_token)
                    param = input_path(index, len(inputs))
                    raise context_error(False, limit, at_least, 0, exact=False, param=param)
        tokens: list[Tokens] = []
        total = 0
        for index, item in enumerate(inputs):
            text_or_ids = item
            if isinstance(item, str):
                keeps_end = truncation.keeps_end
                text_or_ids = item[-max_characters:] if keeps_end else item[:max_characters]
            else:
                check_vocabulary(item, self._vocabulary, input_path(index, len(inputs)))
            ids = await loop.run_in_executor(self._tokenizing, self._ids, text_or_ids)
            if len(ids) > limit:
                if not truncate:
                    param = input_path(index, len(inputs))
                    raise context_error(False, limit, len(ids), 0, param=param)
                ids = truncation.cut(ids)
            total += len(ids)
            if total > MAX_INPUT_TOKENS:
                raise InferenceError.of(too_many_input_tokens())
            tokens.append(ids)
        return tokens

    def _ids(self, item: str | Sequence[int]) -> list[int]:
        if isinstance(item, str):
            # verbose=False: the library must not log that the text is too long, which is checked.
            text = self._prompt + item
            return list(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])
        framed = list(item)
        if framed[: len(self._prefix)] != self._prefix:
            framed = [*self._prefix, *framed]
        if self._suffix and framed[-len(self._suffix) :] != self._suffix:
            framed = [*framed, *self._suffix]
        return framed

    def _forward(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        """One forward pass, in the batcher's thread: float32, inputs x dimensions."""
        import torch

        features = self._tokenizer.pad({"input_ids": list(batch)}, return_tensors="pt")
        try:
            with torch.inference_mode():
                output = self._model({k: v.to(self._model.device) for k, v in features.items()})
                vectors = output["sentence_embedding"][:, : self.model.embedding.dimensions]
                return np.ascontiguousarray(vectors.float().cpu().numpy())
        except Exception as error:
            if ran_out_of_memory(error):
                release_memory(error)
            raise
